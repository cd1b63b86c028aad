"""What any run has: its folder, checkpoints, metrics, clock, and how it is stopped."""
