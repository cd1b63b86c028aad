"""A cell over time, twice: `reference` is the method in plain torch, `native_tape` and csrc/ are the same in C++.

Begin with `tape`, the contract of both. `backend` says which one runs and why, `build` compiles the kernel, `chunks`
cuts a sequence. `sequence` is the one operator behind a layer that returns all its outputs.
"""
