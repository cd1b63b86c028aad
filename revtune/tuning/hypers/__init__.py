"""Hyperparameters: their kinds, the set that is tuned, and the limits of what they set."""
