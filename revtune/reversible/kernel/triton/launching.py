"""How kernels are cut into programs: by the shapes of a layer, never by its batch or a clock, so that bits repeat."""

from __future__ import annotations

from typing import Any

from triton import knobs

ROWS, UNITS, DEPTH = 16, 32, 32
"""Positions and outputs of a program of a product, and inputs that it takes at a time."""

FEW_INPUTS = 16
"""Inputs that a program takes at a time where it evaluates gates with a response, which has two such loops, or runs a
tangent, which has much to load after one: with more, ptxas takes too many registers, or spills."""

HEADS = 16
"""Heads of a program that couples: its words are in the order of steps, turns and these."""

FEW_ROWS = 8
"""Rows of a program that couples c and h of a RevLSTM, or takes c back through a chunk. With 16, ptxas spills where a
head has eight turns, or where rows begin anew."""

ELEMENTS = 256
"""Numbers of a program that takes them one by one."""

WARPS = 4

INTERPRETED: bool = knobs.runtime.interpret
"""Whether kernels, which are decorated now, run in Triton's interpreter, on tensors of a CPU: for tests."""

OPTIONS: dict[str, Any] = {} if INTERPRETED else {"enable_fp_fusion": False, "num_warps": WARPS}
"""What every kernel is compiled with: a multiply-add is fused where the source says so alone."""

ROOMY: dict[str, Any] = {} if INTERPRETED else {**OPTIONS, "maxnreg": 128}
"""The same where ptxas would rather spill than take more registers, if it were not told how many it may."""
