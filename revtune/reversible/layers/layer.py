"""One layer: its tape made, or run over a sequence whose outputs are all returned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from revtune.reversible.arguments import check_numbers
from revtune.reversible.cells import fixed
from revtune.reversible.cells.cell import Cell, State
from revtune.reversible.cells.state_range import check_state
from revtune.reversible.kernel.backend import chosen
from revtune.reversible.kernel.native_tape import NativeTape
from revtune.reversible.kernel.reference import ReferenceTape
from revtune.reversible.kernel.sequence import sequence
from revtune.reversible.kernel.tape import LayerTensors, Tape, TapePosition
from revtune.reversible.kernel.weights import Weights
from revtune.reversible.layers.rewind import run
from revtune.reversible.layers.stack import Stack
from revtune.reversible.transforms import refuse_transforms


def run_layer(
    cell: Cell,
    x: Tensor,
    inputs: LayerTensors,
    *,
    chunk: int | None = None,
    masks: Mapping[str, Tensor] | None = None,
    lengths: Tensor | None = None,
    share: int | None = None,
    name: str = "",
    backend: str = "auto",
) -> tuple[Tensor, State]:
    """One layer whose outputs (T, B, H) are all returned, and its final state; arguments, checked, as in `scan`."""
    if chosen(backend, cell, x, inputs.weights, masks or {}):
        refuse_transforms([x, *inputs.flat()], batches=True)
        return sequence(
            cell, x, inputs.state, inputs.weights, responses=inputs.responses, masks=masks, lengths=lengths,
            chunk=chunk, share=share, name=name,
        )  # fmt: skip
    tape = build_tape(
        cell, inputs, x.shape[0], x.dtype, masks=masks, lengths=lengths, share=share, name=name, backend="reference"
    )
    y, finals = run(Stack([tape]), x, [inputs], chunk=chunk)
    assert y is not None
    return y, finals[0]


def build_tape(
    cell: Cell,
    inputs: LayerTensors,
    steps: int,
    dtype: torch.dtype,
    *,
    masks: Mapping[str, Tensor] | None = None,
    lengths: Tensor | None = None,
    share: int | None = None,
    name: str = "",
    backend: str = "auto",
    sliced: int = 0,
) -> Tape:
    """A tape that stands at the first state; arguments as in `scan` and `Tape`."""
    refuse_transforms(inputs.flat())
    wanted = inputs.wanted() if torch.is_grad_enabled() else frozenset()
    counts = {}
    for group, tensor in zip(cell.states, inputs.state, strict=True):
        check_numbers(f"{name or cell.name}: input", tensor)
        check_state(tensor, f"{name or cell.name}: the first state")
        for part, value in zip(group, tensor.detach().chunk(len(group), -1), strict=True):
            counts[part] = fixed.to_counts(value)
    kept = counts[cell.parts[0]][:, :sliced]
    kept.copy_(fixed.to_counts(fixed.from_counts(kept, dtype)))
    units = counts[cell.parts[0]].shape[-1]
    native = chosen(backend, cell, inputs.state[0].new_empty(0, dtype=dtype), inputs.weights, masks or {})
    weights = Weights(inputs.weights, inputs.responses, wanted, units, name or cell.name, native=native)
    kind = NativeTape if native else ReferenceTape
    return kind(
        cell, weights, TapePosition(counts), steps=steps, dtype=dtype, masks=masks, lengths=lengths, name=name,
        share=share, sliced=sliced,
    )  # fmt: skip
