"""One step of a cell, and what it takes to undo it exactly.

Begin with `cell`: couplings, stages and the four cells' one primitive; `gru` and `lstm` are the papers' cells in it.
`fixed` holds states as multiples of 2^-32, `information_buffer` the bits that forgetting would lose, `state_range`
their limits.
"""
