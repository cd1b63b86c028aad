"""A stack of layers over a sequence that is there as a whole: one call forward, and a backward that rewinds.

Shapes: T time, B batch, I input, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible import meter as metering
from revtune.reversible.cells.cell import State
from revtune.reversible.kernel.asked_once import asking_once
from revtune.reversible.kernel.checksum import BETWEEN, MEANWHILE
from revtune.reversible.kernel.chunks import chunks
from revtune.reversible.kernel.environment import Environment
from revtune.reversible.kernel.tape import LayerTensors
from revtune.reversible.layers.stack import Stack, Tapes
from revtune.reversible.own_pages import zeros
from revtune.reversible.storage import check_all_stored, naming_lost
from revtune.reversible.transforms import graph_retained, refuse_batches, refuse_double_backward, refuse_transforms

Fingerprints = list[tuple[str, int]]
"""Numbers that tell whether tensors have changed, each with what errors call its tensor."""


def run_stack(
    stack: Stack, x: Tensor, inputs: list[LayerTensors], *, chunk: int | None = None, every: bool = True
) -> tuple[Tensor | None, list[State]]:
    """Run a stack over (T, B, I), recorded for backward where a gradient is wanted.

    Args:
        inputs: the differentiable tensors of each tape.
        chunk: steps of a chunk; by default what the stack's budget allows.
        every: whether outputs are wanted at all; if not, no per-step output exists.

    Returns:
        Outputs (T, B, H) or None, and each tape's final state, in the dtype of its first.
    """
    steps = chunk or stack.chunk_steps(x.shape[0])
    tensors = [tensor for layer in inputs for tensor in layer.flat()]
    refuse_transforms([x, *tensors])
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *tensors)):
        if not every:
            stack.reuse_outputs()
        y, *finals = _Rewind.apply(x, stack, steps, every, inputs, *tensors)
    else:
        y = _infer(stack, x.detach(), steps, every)
        finals = last_states(inputs, [tape.state() for tape in stack.tapes])
    remaining = iter(finals)
    states = [tuple(next(remaining) for _ in tape.cell.states) for tape in stack.tapes]
    return (y if every else None), states


class _Rewind(torch.autograd.Function):
    """A stack over a sequence whose backward rewinds."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, stack: Stack, steps: int, every: bool, inputs: list[LayerTensors], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.environment = Environment.current()
        # Most are read through the stack; saved, they let autograd refuse those that are changed in place
        ctx.save_for_backward(x, *tensors, *(mask for tape in stack.tapes for mask in tape.masks.values()))
        ctx.set_materialize_grads(every)  # states of which no gradient comes back are as large as outputs of a step
        ctx.stack, ctx.steps, ctx.every, ctx.inputs = stack, steps, every, inputs
        ctx.fingerprints = fingerprints(stack, x)
        outputs, read = [], list(read_again(stack, x))
        with ctx.environment.restored(x.device), naming_lost(lambda: read):
            for first, part in chunks(x, steps):
                check_all_stored(read)
                last = first + steps >= x.shape[0]
                y = stack.record(part, first) if last else stack.forward(part, first)
                outputs += [y] if every else []
            finals = last_states(inputs, [tape.state(tape.taken_final()) for tape in stack.tapes])
        metering.report(stack.usages())
        return (torch.cat(outputs) if every else x.new_empty(0), *finals)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *dfinals: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward("revtune")
        refuse_batches([dy, *dfinals])
        x, wants_dx = ctx.saved_tensors[0], ctx.needs_input_grad[0]
        keep = graph_retained()
        stack = ctx.stack.copy() if keep else ctx.stack
        check_unchanged(ctx.fingerprints, fingerprints(stack, x))
        aim(stack, dfinals)
        dx = torch.empty_like(x) if wants_dx else None
        read = list(read_again(stack, x))
        try:
            with ctx.environment.restored(x.device), asking_once():
                for first, part in reversed(list(chunks(x, ctx.steps))):
                    check_all_stored(read)
                    last = first + ctx.steps >= x.shape[0]
                    if not last:
                        stack.rewind(part, first)
                    dpart = None if dy is None or not ctx.every else dy[first : first + ctx.steps]
                    grad = stack.gradient(dpart, first, keep=last and keep, wanted=wants_dx)
                    if dx is not None and grad is not None:
                        dx[first : first + ctx.steps] = grad
        finally:  # a change is the reason for other errors too
            check_unchanged(ctx.fingerprints, fingerprints(stack, x), MEANWHILE)
        grads = [grad for tape, layer in zip(stack.tapes, ctx.inputs, strict=True) for grad in layer.gradients(tape)]
        if not keep:
            ctx.stack = ctx.inputs = None
        return (dx, None, None, None, None, *grads)


def fingerprints(stack: Tapes, x: Tensor, encoder_tensors: Iterable[Tensor] = ()) -> Fingerprints:
    """Fingerprints of all that both directions must read alike: input, its encoder, weights, masks and lengths."""
    read = list(read_again(stack, x, encoder_tensors))
    check_all_stored(read)
    found = stack.tapes[0].weights.fingerprints(tensor for _, tensor in read)
    return [(what, number) for (what, _), number in zip(read, found, strict=True)]


def read_again(stack: Tapes, x: Tensor, encoder_tensors: Iterable[Tensor] = ()) -> Iterator[tuple[str, Tensor]]:
    """The tensors of which `fingerprints` takes fingerprints, each after what errors call it."""
    name = stack.tapes[0].name
    yield f"{name}: input", x
    for tensor in encoder_tensors:
        yield f"{name}: a tensor of shape {tuple(tensor.shape)} that encode reads", tensor
    for tape in stack.tapes:
        yield from ((f"{tape.name}: weight {key!r}", weight) for key, weight in tape.weights.named())
        yield from ((f"{tape.name}: mask {part!r}", mask) for part, mask in tape.masks.items())
        if tape.lengths is not None:
            yield f"{tape.name}: lengths", tape.lengths
        if tape.starts is not None:
            yield f"{tape.name}: starts", tape.starts
        if tape.resets is not None:
            yield f"{tape.name}: resets", tape.resets


def check_unchanged(before: Fingerprints, now: Fingerprints, when: str = BETWEEN) -> None:
    """Compare fingerprints; `when` says what lies between them.

    Raises:
        ReversalError: names the first tensor that has changed.
    """
    for (what, known), (_, number) in zip(before, now, strict=True):
        if number != known:
            raise ReversalError(f"{what} was changed {when}; no gradient was produced")


def aim(stack: Tapes, dfinals: Iterable[Tensor | None]) -> None:
    """Start the way back from the gradients of the final states, one (B, H) or None for each state of each tape."""
    grads = iter(dfinals)
    for tape in stack.tapes:
        direction: dict[str, Tensor] = {}
        for group in tape.cell.states:
            grad = next(grads)
            if grad is None:
                like = tape.counts[group[0]].new_empty(0, dtype=tape.dtype)
                grad = zeros(like, (tape.rows, len(group) * tape.units))
            direction |= zip(group, grad.to(tape.dtype).chunk(len(group), -1), strict=True)
        tape.aim(direction)


def last_states(inputs: list[LayerTensors], states: list[State]) -> list[Tensor]:
    """Final states in the dtypes of the first ones."""
    return [
        final.to(first.dtype)
        for layer, state in zip(inputs, states, strict=True)
        for final, first in zip(state, layer.state, strict=True)
    ]


def _infer(stack: Stack, x: Tensor, steps: int, every: bool) -> Tensor:
    with (
        torch.no_grad(),
        Environment.current().restored(x.device),
        naming_lost(lambda: read_again(stack, x)),
    ):
        if every:
            return torch.cat([stack.infer(part, first) for first, part in chunks(x, steps)])
        for first, part in chunks(x, steps):
            stack.infer(part, first)
        return x.new_empty(0)
