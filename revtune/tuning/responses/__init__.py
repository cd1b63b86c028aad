"""Layers whose weights answer to hyperparameters, and their prediction as a linear function of the answers."""
