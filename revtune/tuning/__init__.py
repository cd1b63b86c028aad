"""Networks that tune their own hyperparameters while they train: STN and Delta-STN. Nothing here knows `reversible`.

From the ground up: `hypers` (what is tuned), `responses` (layers whose weights answer), `regularizers` (dropouts,
noise, penalties at each example's own value), `conversion` (any network made self-tuning), `tuner` (both levels).
Begin with `tuner.bilevel`, which reads like the papers.
"""
