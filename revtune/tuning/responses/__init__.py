"""Layers whose weights respond to hyperparameters, and a prediction that is linear in their responses."""
