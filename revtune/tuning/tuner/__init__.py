"""The alternation of both levels: training steps at perturbed values, validation steps for the values.

Begin with `bilevel` (STN and Delta-STN, ten lines each), then `tuner`, which checks, steps, records and saves.
"""
