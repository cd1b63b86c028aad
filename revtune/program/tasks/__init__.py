"""Tasks whose hyperparameters are tuned, and the networks that learn them.

Begin with `task`, the contract that a recipe fulfils; `learner` and its two kinds train, `loop` runs and saves.
"""
