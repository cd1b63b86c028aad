"""Regularizers at a value for each example: dropouts, noise, augmentation and penalties."""
