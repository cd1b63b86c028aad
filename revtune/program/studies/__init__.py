"""What is more than one run of a recipe, or a run whose hyperparameters are tuned."""
