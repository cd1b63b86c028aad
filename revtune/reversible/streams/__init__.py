"""Whole training steps, chunk by chunk: encoder, recurrent stack, readout and loss.

Begin with `stream`: `rewind_loss`, which runs forward and then rewinds with readout and gradients; `outputs` is the
same for losses over whole sequences, `encode` for a sequence that a decoder attends to. `readout`, `dropout` and
`attention` are modules made for it.
"""
