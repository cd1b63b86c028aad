"""One layer in one direction: its tape, or its run over a sequence whose outputs are all returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from revtune.reversible.arguments import check_materialized
from revtune.reversible.cells import fixed
from revtune.reversible.cells.cell import Cell, State
from revtune.reversible.cells.state_range import check_state
from revtune.reversible.kernel.engine import Engine
from revtune.reversible.kernel.native_tape import NativeTape
from revtune.reversible.kernel.reference import ReferenceTape
from revtune.reversible.kernel.sequence import sequence
from revtune.reversible.kernel.tape import ANEW, LayerTensors, Tape, TapePosition
from revtune.reversible.kernel.weight_mask import WeightMask
from revtune.reversible.kernel.weights import Weights
from revtune.reversible.layers.rewind import run_stack
from revtune.reversible.layers.stack import Stack
from revtune.reversible.own_pages import copied, zeros
from revtune.reversible.transforms import active, is_batch, refuse_transforms, wants_gradient


class LayerSettings(NamedTuple):
    """How a layer runs: everything but its inputs, states and weights.

    Attributes:
        name: what errors call the layer.
        engine: the kernel that runs it, if any; `chosen` decides, once a call.
        masks: locked masks (B, N) by part, on the parts as the cell reads them.
        lengths: steps of each row, (B,), or None for all.
        chunk: steps of a chunk, or None for what the budget allows.
        share: units that share a head of the buffer, or None for `default_share`.
        sliced: how many first units are kept at every step, as in `Tape`.
        answering: whether responses add to products, as in `Weights`.
        resets: before which steps rows begin anew, as in `Tape`.
        starts: the first step that each row runs, as in `Tape`; of tapes alone.
        weight_mask: under which recurrent weights are read, as in `Weights`; of native tapes alone.
    """

    name: str
    engine: Engine = ""
    masks: Mapping[str, Tensor] = {}
    lengths: Tensor | None = None
    chunk: int | None = None
    share: int | None = None
    sliced: int = 0
    answering: bool = True
    resets: Tensor | None = None
    starts: Tensor | None = None
    weight_mask: WeightMask | None = None


def run_layer(cell: Cell, x: Tensor, inputs: LayerTensors, settings: LayerSettings) -> tuple[Tensor, State]:
    """Run one layer over (T, B, I): its outputs (T, B, H) and its final state, in the dtypes of the first."""
    assert settings.starts is None and settings.weight_mask is None
    if settings.engine:
        if active():
            _refuse_transforms([x, *inputs.flat()], cell)
        return sequence(
            cell, x, inputs.state, inputs.weights, responses=inputs.responses, masks=settings.masks,
            lengths=settings.lengths, chunk=settings.chunk, share=settings.share, name=settings.name,
            answering=settings.answering, resets=settings.resets, anew=inputs.anew, engine=settings.engine,
        )  # fmt: skip
    tape = build_tape(cell, inputs, settings, x.shape[0], x.dtype)
    y, finals = run_stack(Stack([tape]), x, [inputs], chunk=settings.chunk)
    assert y is not None
    return y, finals[0]


def _refuse_transforms(tensors: Sequence[Tensor], cell: Cell) -> None:
    """Refuse transforms other than torch.func.vmap, and that too where examples give different numbers of words.

    What a RevLSTM's c loses the kernel's operator returns in words, of which there are as many as the gates make.
    """
    counted = len(cell.states) > 1 and torch.is_grad_enabled() and any(map(wants_gradient, tensors))
    refuse_transforms(tensors, batches=True)
    if counted and any(map(is_batch, tensors)):
        raise RuntimeError(
            "revtune does not support torch.func.vmap here: a RevLSTM stores another number of words for each example; "
            "make the examples rows of one batch, or run it under torch.no_grad()"
        )


def build_tape(cell: Cell, inputs: LayerTensors, settings: LayerSettings, steps: int, dtype: torch.dtype) -> Tape:
    """A tape at the first state, for a sequence of so many steps, with gates and outputs of this dtype."""
    refuse_transforms(inputs.flat() if settings.resets is None else [*inputs.flat(), settings.resets])
    wanted = inputs.wanted() if torch.is_grad_enabled() else frozenset()
    counts = _counts(cell, inputs.state, settings, "the first state", dtype)
    rows, units = counts[cell.parts[0]].shape
    anew = {}
    if settings.resets is not None:
        anew = _counts(cell, tuple(state.expand(rows, -1) for state in inputs.anew), settings, ANEW, dtype)
        anew = anew or {part: zeros(count, (rows, units)) for part, count in counts.items()}
    weights = Weights(
        inputs.weights, inputs.responses, wanted, units, settings.name, engine=settings.engine,
        answering=settings.answering, mask=settings.weight_mask,
    )  # fmt: skip
    kind = NativeTape if settings.engine else ReferenceTape
    return kind(
        cell, weights, TapePosition(counts), steps=steps, dtype=dtype, masks=settings.masks, lengths=settings.lengths,
        name=settings.name, share=settings.share, sliced=settings.sliced, resets=settings.resets, anew=anew,
        starts=settings.starts,
    )  # fmt: skip


def _counts(cell: Cell, states: State, settings: LayerSettings, what: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """States in counts, (B, N) by part; of no states, nothing."""
    counts: dict[str, Tensor] = {}
    for group, tensor in zip(cell.states, states, strict=bool(states)):
        check_materialized(f"{settings.name}: input", tensor)
        check_state(tensor, f"{settings.name}: {what}")
        for part, value in zip(group, tensor.detach().chunk(len(group), -1), strict=True):
            counts[part] = copied(fixed.to_counts(value))
    if states and settings.sliced:  # sliced units are kept as floats, so a state before a step has to be one
        sliced = counts[cell.parts[0]][:, : settings.sliced]
        sliced.copy_(fixed.to_counts(fixed.from_counts(sliced, dtype)))
    return counts
