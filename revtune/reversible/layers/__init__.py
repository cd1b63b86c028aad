"""Layers over a sequence that is here as a whole: scan, rewinding as one autograd function, RevGRU and RevLSTM."""
