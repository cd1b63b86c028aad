"""Hyperparameters: their kinds, the set that is tuned with its perturbations, and their ranges.

Begin with `kinds`; `hyperparameters` holds current values and perturbation scales, and
the pass that layers read from; `perturbation` draws what training sees.
"""
