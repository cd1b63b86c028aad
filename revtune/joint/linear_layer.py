"""A reversible layer in Delta-STN's two passes, as a function that is linear in its responses.

The first pass runs at no departure, with responses that learn and add nothing. The second runs again over the same
values and carries tangents beside them, chunk by chunk.

Shapes: T time, B batch, I input, H hidden, G rows of a weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from revtune.reversible.cells.cell import State
from revtune.reversible.kernel.chunks import chunks
from revtune.reversible.kernel.environment import Environment
from revtune.reversible.kernel.tape import LayerTensors
from revtune.reversible.layers.layer import LayerSettings, build_tape, run_layer
from revtune.reversible.layers.stack import Stack
from revtune.tuning.responses.linearized import ResponseRecord, straight_through, tangent_of

if TYPE_CHECKING:
    from revtune.joint.rev_layers import ResponseRev


def shifted(bias: Tensor, shift: Tensor, record: ResponseRecord | None) -> Tensor:
    """A bias (G,) with each row's shift (B, G): their sum, or in Delta-STN's passes the bias as if they were added."""
    if record is None:
        return bias + shift
    rows = bias.expand_as(shift).clone()
    return straight_through(rows, shift) if record.recording else forward_ad.make_dual(rows, shift)


def linear_layer(
    owner: ResponseRev, record: ResponseRecord, x: Tensor, inputs: LayerTensors, settings: LayerSettings
) -> tuple[Tensor, State]:
    """One layer in one direction over (T, B, I): its outputs (T, B, H) and its final state."""
    if not record.recording:
        return _moved(owner, record, x, inputs, settings)
    y, final = run_layer(owner.cell, x, inputs, settings)
    record.keep(owner, *(kept.detach().clone() for kept in (y, *final)))
    return y, final


def _moved(
    owner: ResponseRev, record: ResponseRecord, x: Tensor, inputs: LayerTensors, settings: LayerSettings
) -> tuple[Tensor, State]:
    """What the first pass kept, with tangents."""
    bias = inputs.weights.get("bias")
    still = LayerTensors(
        tuple(map(_primal, inputs.state)),
        {name: _primal(weight) for name, weight in inputs.weights.items()},
        inputs.responses,
        inputs.anew,
    )
    if any(tangent_of(state) is not None for state in inputs.anew):
        raise ValueError(
            f"{settings.name}: a reset_state that moves with hyperparameters cannot be followed by Delta-STN; detach "
            'it, or use method="stn"'
        )
    x, dx = _primal(x), tangent_of(x)
    start = _by_part(owner, [tangent_of(state) for state in inputs.state], x.dtype)
    shift = None if bias is None else tangent_of(bias)
    with torch.no_grad(), Environment.current().restored(x.device):
        tape = build_tape(owner.cell, still, settings, len(x), x.dtype)
        steps, pieces = Stack([tape]).chunk_steps(len(x)), []
        for first, part in chunks(x, steps):
            tape.record(part, first)
            moved_in = None if dx is None else dx[first : first + len(part)]
            dy, start = tape.tangent(part, first, moved_in, shift, start)
            pieces.append(dy)
            tape.restart(tape.taken_final())
        moved = [torch.cat([start[part] for part in group], -1) for group in owner.cell.states]
    y, *final = record.recall(owner)
    states = (forward_ad.make_dual(state, tangent.to(state.dtype)) for state, tangent in zip(final, moved, strict=True))
    return forward_ad.make_dual(y, torch.cat(pieces)), tuple(states)


def _by_part(owner: ResponseRev, tangents: list[Tensor | None], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tangents of first states by part; of those that have none, nothing."""
    parts: dict[str, Any] = {}
    for group, tangent in zip(owner.cell.states, tangents, strict=True):
        if tangent is not None:
            parts |= zip(group, tangent.to(dtype).chunk(len(group), -1), strict=True)
    return parts


def _primal(x: Tensor) -> Tensor:
    return forward_ad.unpack_dual(x).primal.detach()
