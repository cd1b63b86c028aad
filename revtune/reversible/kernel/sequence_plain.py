"""A whole sequence in plain torch, for a program that was traced with the kernel and has come where there is none.

It has the kernel's outputs up to rounding, and no way back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from revtune.reversible.cells import fixed
from revtune.reversible.cells.cell import Cell, State
from revtune.reversible.kernel.reference import ReferenceTape
from revtune.reversible.kernel.sequence_arguments import SequenceArguments
from revtune.reversible.kernel.tape import TapePosition
from revtune.reversible.kernel.weights import Weights


def run_plainly(given: SequenceArguments, facts: Tensor) -> tuple[Tensor, ...]:
    """What torch.ops.revtune.sequence returns, with nothing kept and these facts; a batch may have no rows."""
    x, steps = given.x, given.x.shape[0]
    nothing = x.new_empty(0, x.shape[1], given.hh.shape[0]), x.new_empty(0, dtype=torch.int16)
    if not x.shape[1]:
        final = x.new_empty(len(given.state), *given.h.shape, dtype=torch.float64)
        return x.new_empty(steps, 0, given.h.shape[-1]), final, *nothing, facts
    cell = given.cell()
    counts = _counts(cell, given.state)
    like = {part: torch.zeros_like(count) for part, count in counts.items()}
    anew = {part: count.expand(x.shape[1], -1) for part, count in (like | _counts(cell, given.anew)).items()}
    with torch.no_grad():
        units = given.h.shape[-1] // 2
        weights = Weights(given.weights(), given.responses(), frozenset(), units, given.name, answering=given.answering)
        tape = ReferenceTape(
            cell, weights, TapePosition(counts), steps=steps, dtype=x.dtype, masks=given.masks(),
            lengths=given.lengths, name=given.name, share=given.share, resets=given.resets, anew=anew,
        )  # fmt: skip
        y = tape.preview(x, 0) if given.train else tape.infer(x, 0)
    return y, torch.stack(tape.state()), *nothing, facts


def _counts(cell: Cell, states: State) -> dict[str, Tensor]:
    """The counts of states, by part."""
    counts: dict[str, Tensor] = {}
    for group, state in zip(cell.states, states, strict=False):
        counts |= {part: fixed.to_counts(half) for part, half in zip(group, state.chunk(2, -1), strict=True)}
    return counts
