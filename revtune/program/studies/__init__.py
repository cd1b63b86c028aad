"""What is more than one run: contests of ways to tune, the schedule experiment, the repeat task.

Begin with the study's own folder; `tuned` runs a single task whose hyperparameters are tuned.
"""
