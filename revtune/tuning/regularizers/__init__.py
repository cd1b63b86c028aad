"""What is tuned: dropouts, noise, augmentation and penalties, each example at its own perturbed value.

Begin with `dropouts`. `penalties` are losses for each example; `loader` and `sampler` carry values to worker processes.
"""
