"""Layers over a sequence that is in memory as a whole: RevGRU and RevLSTM (`modules`, `rnn`), `scan` for any cell.

Begin with `scan`, then `rewind`, which makes rewinding one autograd function. `stack` moves the layers of a net through
a chunk together.
"""
