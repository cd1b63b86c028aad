"""Recurrent nets that rewind: instead of keeping every state, they recompute states backwards from the last one.

From the ground up: `cells` (numbers, information buffer, couplings), `kernel` (a cell over time), `layers` (RevGRU,
RevLSTM, `scan`), `streams` (whole training steps). Begin with `cells.cell`, then `kernel.reference`.
"""
