"""A step of one layer that the kernel takes with a gradient: autograd keeps its input and its states.

Gates are not kept. On the way back they are evaluated again, from the states on both sides of the step, by the kernel's
operators for a chunk of one step.

Shapes: B batch, I input, H hidden, N = H / 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from revtune.reversible.cells import fixed
from revtune.reversible.cells.cell import Cell, State
from revtune.reversible.cells.plain_step import plain_step
from revtune.reversible.kernel.chunk_buffers import PARTS
from revtune.reversible.kernel.kernel import Kernel
from revtune.reversible.kernel.step import stepped
from revtune.reversible.kernel.weights import Weights


def kept_step(cell: Cell, x: Tensor, states: State, parameters: Sequence[Tensor], *, backend: str) -> State | None:
    """The state after a step, with a gradient; None where the operator does not take the step.

    Args:
        cell: which cell.
        x: inputs, (B, I).
        states: one tensor (B, H) for each of the cell's states.
        parameters: `ih`, `hh`, and two biases if there are any.
        backend: as in `chosen`.
    """
    with torch.no_grad():
        bare = [tensor.detach().contiguous() for tensor in (x, *states, *parameters)]
        first, last = 1 + len(states), 1 + len(states) + len(parameters)
        shape, bias = tuple(states[0].shape), len(parameters) > 2
        results = stepped(cell, bare[0], bare[1:first], shape, bare[first:last], bias=bias, backend=backend)
    if results is None:
        return None
    after: State = _KeptStep.apply(cell, tuple(results[1:]), x, *states, *parameters)
    return after


class _KeptStep(torch.autograd.Function):
    """A step that has been taken, with its way back."""

    @staticmethod
    def forward(ctx: Any, cell: Cell, after: State, *tensors: Tensor) -> State:
        ctx.cell = cell
        # Backward reads the states, and the caller may write to them: they share memory until then (private, as yet)
        ctx.save_for_backward(*tensors, *map(torch._lazy_clone, after))
        return after

    @staticmethod
    def backward(ctx: Any, *dafter: Tensor) -> tuple[Tensor | None, ...]:
        cell, count = ctx.cell, len(ctx.cell.states)
        saved = ctx.saved_tensors  # read once, as torch's checkpoint allows
        tensors, after = saved[:-count], saved[-count:]
        wanted = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():
            return None, None, *_differentiable(cell, tensors, dafter, wanted)
        return None, None, *_gradients(cell, tensors, after, dafter, wanted)


def _gradients(
    cell: Cell, tensors: Sequence[Tensor], after: State, dafter: State, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of input, states and parameters, those that are wanted, by the kernel."""
    count, units = len(cell.states), after[0].shape[-1] // PARTS
    x, states, parameters = tensors[0], tensors[1 : 1 + count], tensors[1 + count :]
    named = _named(parameters)
    want = dict(zip(("x", *"hc"[:count], "ih", "hh", "bias", "bias_hh"), wanted, strict=False))
    want["bias"] = want.get("bias", False) or want.get("bias_hh", False)
    weights = Weights(named, {}, frozenset(key for key in named if want[key]), units, "", check=False, engine="native")
    kernel = Kernel(cell, weights, units, {}, None)
    ends = [state.to(x.dtype).unsqueeze(0) for state in after]
    starts = [fixed.from_counts(fixed.to_counts(state), x.dtype).contiguous() for state in states]
    chunk = kernel.chunk_buffers(x.unsqueeze(0), ends[0], recorded=True)._replace(y_start=starts[0])
    if count > 1:
        chunk = chunk._replace(c=ends[1], c_start=starts[1])
    kernel.recall(chunk)
    direction = torch.stack([d.to(x.dtype).unflatten(-1, (PARTS, units)).movedim(-2, 0) for d in dafter])
    grads = kernel.gradient(chunk, direction, None, 0)
    weights.add_projection(x.unsqueeze(0), grads)
    dx = weights.project_back(grads)[0] if want["x"] else None
    dstates = [d.movedim(0, -2).flatten(-2).to(state.dtype) for d, state in zip(direction, states, strict=True)]
    dparameters = [weights.gradients.get(key) for key in named]
    if "bias" in named:
        dparameters.append(None if dparameters[-1] is None else dparameters[-1].clone())  # gradients share no memory
    return [dx, *dstates, *dparameters]


def _differentiable(
    cell: Cell, tensors: Sequence[Tensor], dafter: State, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The same with a graph of its own, so that it has gradients in turn: the step again in plain torch."""
    count = len(cell.states)
    after = plain_step(cell, tensors[0], tuple(tensors[1 : 1 + count]), _named(tensors[1 + count :]), cell.name)
    leaves = [tensor for tensor, want in zip(tensors, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(after, leaves, dafter, create_graph=True))
    return [next(found) if want else None for want in wanted]


def _named(parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    """Parameters as weights by name, the two biases added up."""
    ih, hh, *biases = parameters
    return {"ih": ih, "hh": hh, "bias": biases[0] + biases[1]} if biases else {"ih": ih, "hh": hh}
