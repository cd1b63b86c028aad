"""Both halves at once: reversible nets that tune their own hyperparameters while they train.

Begin with `rev_layers`, RevGRU and RevLSTM with a response. `entries` makes all of it known to both halves.
"""
