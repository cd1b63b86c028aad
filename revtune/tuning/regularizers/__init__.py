"""What is tuned: dropouts, noise, augmentation and penalties at a value for each example."""
