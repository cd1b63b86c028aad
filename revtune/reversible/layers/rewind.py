"""A stack of layers over a sequence that is here as a whole: one call forward, and a backward that rewinds.

Shapes: T time, B batch, I input, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible import meter as metering
from revtune.reversible.cells.cell import State
from revtune.reversible.kernel.chunks import chunks
from revtune.reversible.kernel.environment import Environment
from revtune.reversible.kernel.tape import LayerTensors
from revtune.reversible.layers.stack import DEFAULT_BUDGET, Stack, chunk_steps
from revtune.reversible.transforms import refuse_batches, refuse_transforms


def run(
    stack: Stack, x: Tensor, inputs: list[LayerTensors], *, chunk: int | None = None, every: bool = True
) -> tuple[Tensor | None, list[State]]:
    """Run a stack over (T, B, I), recorded for backward where a gradient is wanted.

    Args:
        inputs: the differentiable tensors of each tape.
        every: whether outputs are wanted at all; if not, no per-step output exists.

    Returns:
        Outputs (T, B, H) or None, and each tape's final state, in the dtype of its first.
    """
    steps = chunk or chunk_steps(x.shape[0], x.shape[1], stack, DEFAULT_BUDGET)
    tensors = [tensor for layer in inputs for tensor in layer.flat()]
    refuse_transforms([x, *tensors])
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *tensors)):
        y, *finals = _Rewind.apply(stack, steps, every, inputs, x, *tensors)
    else:
        y = _infer(stack, x.detach(), steps, every)
        finals = last_states(inputs, [tape.state() for tape in stack.tapes])
    places = iter(finals)
    grouped = [tuple(next(places) for _ in tape.cell.states) for tape in stack.tapes]
    return (y if every else None), grouped


class _Rewind(torch.autograd.Function):
    """A stack over a sequence whose backward rewinds."""

    @staticmethod
    def forward(
        ctx: Any, stack: Stack, steps: int, every: bool, inputs: list[LayerTensors], x: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.environment = Environment.current()
        ctx.save_for_backward(x, *tensors, *(mask for tape in stack.tapes for mask in tape.masks.values()))
        ctx.stack, ctx.steps, ctx.every, ctx.inputs = stack, steps, every, inputs
        ctx.fingerprints = fingerprints(stack, x)
        outputs = []
        with ctx.environment.restored(x.device):
            for first, part in chunks(x, steps):
                last = first + steps >= x.shape[0]
                y = stack.record(part, first) if last else stack.forward(part, first)
                outputs += [y] if every else []
            finals = last_states(inputs, [tape.state(tape.final) for tape in stack.tapes])
        metering.report(stack.usages())
        return (torch.cat(outputs) if every else x.new_empty(0), *finals)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *dfinals: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("revtune")
        refuse_batches([dy, *dfinals])
        x = ctx.saved_tensors[0]
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        stack = ctx.stack.copy() if keep else ctx.stack
        check_unchanged(ctx.fingerprints, fingerprints(stack, x))
        aim(stack, dfinals)
        dx = torch.empty_like(x) if ctx.needs_input_grad[4] else None
        with ctx.environment.restored(x.device):
            for first, part in reversed(list(chunks(x, ctx.steps))):
                last = first + ctx.steps >= x.shape[0]
                if not last:
                    stack.rewind(part, first)
                grad = stack.gradient(dy[first : first + ctx.steps] if ctx.every else None, first, keep=last and keep)
                if dx is not None:
                    dx[first : first + ctx.steps] = grad
        found = [grad for tape, layer in zip(stack.tapes, ctx.inputs, strict=True) for grad in layer.gradients(tape)]
        if not keep:
            ctx.stack = ctx.inputs = None
        return (None, None, None, None, dx, *found)


def fingerprints(stack: Stack, x: Tensor, others: Iterable[Tensor] = ()) -> list[tuple[str, int]]:
    """What must be the same in both directions, by name: input, what encodes it, weights, masks and lengths."""
    name, number = stack.tapes[0].name, stack.tapes[0].weights.fingerprint
    found = [(f"{name}: input", number(x))]
    found += [(f"{name}: what encodes its input, of shape {tuple(one.shape)},", number(one)) for one in others]
    for tape in stack.tapes:
        found += [(f"{tape.name}: weight {key!r}", known) for key, known in tape.weights.fingerprints()]
        found += [(f"{tape.name}: mask {part!r}", number(mask)) for part, mask in tape.masks.items()]
        if tape.lengths is not None:
            found.append((f"{tape.name}: lengths", number(tape.lengths)))
    return found


def check_unchanged(before: list[tuple[str, int]], now: list[tuple[str, int]]) -> None:
    """Compare fingerprints.

    Raises:
        ReversalError: names the first that differs.
    """
    for (what, known), (_, number) in zip(before, now, strict=True):
        if number != known:
            raise ReversalError(
                f"{what} was changed (through .data?) between forward and backward; no gradient was produced"
            )


def aim(stack: Stack, dfinals: Iterable[Tensor]) -> None:
    """Start the way back from the gradients of the final states, one (B, H) for each state of each tape."""
    grads = iter(dfinals)
    for tape in stack.tapes:
        direction: dict[str, Tensor] = {}
        for group in tape.cell.states:
            direction |= zip(group, next(grads).to(tape.dtype).chunk(len(group), -1), strict=True)
        tape.aim(direction)


def refuse_double_backward(what: str) -> None:
    """Raise where a graph of the way back is wanted."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{what} does not support double backward: a rewound gradient has no graph; use create_graph=False"
        )


def last_states(inputs: list[LayerTensors], states: list[State]) -> list[Tensor]:
    """Final states in the dtypes of the first ones."""
    return [
        final.to(first.dtype)
        for layer, state in zip(inputs, states, strict=True)
        for final, first in zip(state, layer.state, strict=True)
    ]


def _infer(stack: Stack, x: Tensor, steps: int, every: bool) -> Tensor:
    with torch.no_grad(), Environment.current().restored(x.device):
        if every:
            return torch.cat([stack.infer(part, first) for first, part in chunks(x, steps)])
        for first, part in chunks(x, steps):
            stack.infer(part, first)
        return x.new_empty(0)
