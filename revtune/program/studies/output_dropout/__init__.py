"""The schedule experiment: one dropout rate, tuned from five starts, fixed, moving, and replayed.

Begin with `experiment`; `results` draws and concludes.
"""
