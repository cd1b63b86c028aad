"""Layers whose weights respond to hyperparameters: y = W0 x + b0 + (Q d) * (W1 x) + Q_b d.

Begin with `responding`; `layers`, `normalisation` and `recurrent` are torch's layers with it, `registered` those of a
user. `linearized` predicts with responses as a linear function, which Delta-STN needs.
"""
