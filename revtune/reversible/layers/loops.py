"""The operators of layers as loops in plain torch, into which torch.onnx.export decomposes them.

An ONNX model has no operators of revtune: a layer is a Scan, whose body is one step in fixed-point arithmetic, float64
whole numbers that are rounded as in inference. Nothing is kept for a way back.

Shapes: T time, B batch, I input, H hidden, N = H / 2, G gates, L layers, S states of the cell (h, or h and c).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch._higher_order_ops.scan import scan_op
from torch.nn import functional as F

from revtune.reversible.cells import fixed
from revtune.reversible.cells.cell import Cell, State, Step
from revtune.reversible.kernel.sequence import shapes as shapes_of_sequence
from revtune.reversible.kernel.sequence_arguments import SequenceArguments
from revtune.reversible.layers.stack_arguments import StackArguments
from revtune.reversible.layers.stack_operator import shapes as shapes_of_stack


def looped(
    cell: Cell,
    x: Tensor,
    state: State,
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """A layer over (T, B, I) as torch's scan: outputs (T, B, H), and final states (S, B, H), float64."""
    counts = []
    for group, tensor in zip(cell.states, state, strict=True):
        counts += [fixed.to_counts(half) for half in tensor.chunk(len(group), -1)]
    projected = F.linear(x, weights["ih"], weights.get("bias")) if "ih" in weights else x
    steps = torch.arange(x.shape[0], device=x.device)
    read = [weights["hh"], *masks.values(), *([] if lengths is None else [lengths])]

    def step(*given: Tensor) -> list[Tensor]:
        parts, (row, index, hh, *others) = given[: len(counts)], given[len(counts) :]
        live = None if lengths is None else (others.pop() > index).unsqueeze(-1)
        return _step(
            cell, dict(zip(cell.parts, parts, strict=True)), row, hh, dict(zip(masks, others, strict=True)), live
        )

    # Detached, since there is no way back: torch's scan would look for one, and symbols of shapes confuse it
    counts, projected, read = [one.detach() for one in counts], projected.detach(), [one.detach() for one in read]
    *last, y = scan_op(step, counts, [projected, steps], read)
    finals = dict(zip(cell.parts, (fixed.from_counts(count) for count in last), strict=True))
    return y, torch.stack([torch.cat([finals[part] for part in group], -1) for group in cell.states])


def _step(
    cell: Cell, counts: dict[str, Tensor], row: Tensor, hh: Tensor, masks: Mapping[str, Tensor], live: Tensor | None
) -> list[Tensor]:
    """One step: new counts, (B, N) by part, and the output (B, H)."""
    floats = {part: fixed.from_counts(count, row.dtype) for part, count in counts.items()}
    units, first = floats[cell.parts[0]].shape[-1], 0
    for stage in cell.stages:
        reads = {part: value * masks[part] if part in masks else value for part, value in floats.items()}
        step = Step(row[:, first * units : (first + stage.blocks) * units], reads, {"hh": hh}, {})
        first += stage.blocks
        gates = stage.gates(step)
        for coupling in stage.couplings:
            z, u = coupling.update(step, *gates)
            before = counts[coupling.part]
            kept = before if z is None else torch.round(before * fixed.forget_integer(z) * (1 / fixed.FORGET_ONE))
            after = kept + fixed.to_counts(u)
            counts[coupling.part] = after if live is None else torch.where(live, after, before)
            floats[coupling.part] = reads[coupling.part] = fixed.from_counts(counts[coupling.part], row.dtype)
    return [*counts.values(), torch.cat([floats[part] for part in cell.states[0]], -1)]


def _sequence(*arguments: Any) -> Any:
    given = SequenceArguments(*arguments)
    if given.responses() or given.resets is not None:
        return NotImplemented
    y, final = looped(given.cell(), given.x, given.state, given.weights(), given.masks(), given.lengths)
    kept = given.x.new_empty(0, given.x.shape[1], given.hh.shape[0])
    return y, final, kept, given.x.new_empty(0, dtype=torch.int16), given.x.new_empty(0, dtype=torch.int64)


def _stack(*arguments: Any) -> Any:
    given = StackArguments(*arguments)
    if given.seeds is not None:
        return NotImplemented
    y, finals = given.x, []
    for i, (weights, masks) in enumerate(zip(given.named_weights(), given.named_masks(), strict=True)):
        y, final = looped(given.cell(), y, tuple(state[i] for state in given.state), weights, masks, given.lengths)
        finals.append(final)
    nothing = [given.x.new_empty(0, dtype=dtype) for dtype in (torch.float64, torch.int16, torch.int64)]
    return y if given.every else given.x.new_empty(0), torch.stack(finals, 1), *nothing


def decompose_for_onnx() -> None:
    """Let torch.onnx.export find the loops: of all that decomposes, it alone reads their table."""
    sequence, stack = torch.ops.revtune.sequence.default, torch.ops.revtune.stack.default
    for operator, loop, shapes in ((sequence, _sequence, shapes_of_sequence), (stack, _stack, shapes_of_stack)):
        register_decomposition(operator)(loop)
        register_decomposition(operator, type="meta")(shapes)  # else fake tensors would run the loop for its shapes
