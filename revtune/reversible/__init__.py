"""Reversible recurrent nets: numbers and cells, their tapes on two backends, layers, and whole training steps."""
