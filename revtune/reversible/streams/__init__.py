"""Whole training steps, chunk by chunk: encoder, recurrent stack, readout and loss."""
