"""Numbers on the grid, the information buffer, couplings, and the four cells built from them."""
