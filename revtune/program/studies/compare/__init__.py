"""Contests of ways to tune hyperparameters, each with the same time.

Begin with `compare`, which runs one; `contest` holds its terms, `search` runs Optuna's trials, `table` concludes.
"""
