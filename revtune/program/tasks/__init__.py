"""Tasks whose hyperparameters are tuned, and who learns them."""
