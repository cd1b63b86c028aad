"""A cell over time, twice: `reference` is the method in plain torch, `native_tape` and csrc/ are the same in C++."""
