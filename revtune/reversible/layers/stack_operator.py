"""A stack of layers over a sequence as one operator, torch.ops.revtune.stack, for graphs that are traced.

Eager code runs a stack by rewind.py, whose backward holds the stack itself. A graph holds tensors alone, so here the
stack is built from tensors, and what rewinding needs travels between the two directions as tensors: the states before
the last chunk, the words, and a record of numbers (stack_record.py). The last chunk runs again on the way back.

Shapes: T time, B batch, I input, H hidden, L layers, S states of the cell (h, or h and c).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible import meter as metering
from revtune.reversible.kernel.asked_once import asking_once
from revtune.reversible.kernel.chunks import chunks
from revtune.reversible.kernel.environment import Environment
from revtune.reversible.kernel.inductor import run_whole
from revtune.reversible.kernel.traced import free_size
from revtune.reversible.layers.rewind import aim, check_unchanged, fingerprints
from revtune.reversible.layers.stack import Stack
from revtune.reversible.layers.stack_arguments import ARGUMENTS, StackArguments, Wanted
from revtune.reversible.layers.stack_record import StackRecord
from revtune.reversible.transforms import refuse_double_backward


def stack_operator(given: StackArguments) -> tuple[Tensor, Tensor]:
    """Run a stack: outputs (T, B, H), empty if none are wanted, and the final states, (S, L, B, H), float64."""
    y, final, *_ = torch.ops.revtune.stack(*given)
    return y, final


def _stack(*arguments: Any) -> tuple[Tensor, ...]:
    """torch.ops.revtune.stack: outputs (or none), final states, and what is kept for the way back."""
    given, environment = StackArguments(*arguments), Environment.current()
    if not given.x.shape[1]:
        return _shaped(given, (0, 0, 0))
    outputs, positions = [], []
    with torch.no_grad(), environment.restored(given.x.device):
        stack = Stack(given.links())
        steps = stack.chunk_steps(given.x.shape[0])
        for first, part in chunks(given.x, steps):
            if not given.train:
                y = stack.infer(part, first)
            elif first + steps < given.x.shape[0]:
                y = stack.forward(part, first)
            else:
                positions = [tape.position() for tape in stack.tapes]
                y = stack.preview(part, first)
            outputs += [y] if given.every else []
        final = torch.stack([torch.stack(tape.state()) for tape in stack.tapes], 1)
    y = torch.cat(outputs) if given.every else given.x.new_empty(0)
    if not given.train:
        return y, final, *_shaped(given, (0, 0, 0))[2:]
    metering.report(stack.usages())
    prints = [number for _, number in fingerprints(stack, given.x)]
    record = StackRecord(environment, prints, positions, [tape.stored() for tape in stack.tapes])
    return y, final, *record.tensors(given.x.device)


def _stack_backward(*arguments: Any) -> list[Tensor]:
    """torch.ops.revtune.stack_backward: gradients of `StackArguments.differentiable`, empty where not wanted."""
    dy, dfinal, final, numbers, words, facts, wanted, *rest = arguments
    given = StackArguments(*rest)
    if not given.x.shape[1]:
        return [torch.zeros_like(grad) for grad in _fake_backward(*arguments)]
    wants = Wanted.of(wanted, given)
    stack, inputs = Stack(given.links(wants)), given.layers(wants)
    record = StackRecord.of(stack, numbers, words, facts)
    now = fingerprints(stack, given.x)
    check_unchanged([(what, known) for (what, _), known in zip(now, record.prints, strict=True)], now)
    for tape, position, stored in zip(stack.tapes, record.positions, record.stored, strict=True):
        tape.restart(position)
        tape.take_up(stored)
    if dfinal is None:
        dfinal = torch.zeros_like(final)
    aim(stack, [grad for layer in dfinal.unbind(1) for grad in layer.unbind()])
    dx = torch.empty_like(given.x, memory_format=torch.contiguous_format) if wants.x else None
    with torch.no_grad(), record.environment.restored(given.x.device), asking_once():
        steps = stack.chunk_steps(given.x.shape[0])
        for first, part in reversed(list(chunks(given.x, steps))):
            if first + steps < given.x.shape[0]:
                stack.rewind(part, first)
            else:
                stack.record(part, first)
                _check_end(stack, final)
            dpart = dy[first : first + steps] if dy is not None and given.every else None
            grad = stack.gradient(dpart, first, wanted=wants.x)
            if dx is not None and grad is not None:
                dx[first : first + steps] = grad
    found = [layer.gradients(tape) for tape, layer in zip(stack.tapes, inputs, strict=True)]
    return given.gathered(wants, dx, found)


def _check_end(stack: Stack, final: Tensor) -> None:
    """Refuse a last chunk that ends elsewhere than it did."""
    for layer, tape in enumerate(stack.tapes):
        if not torch.equal(torch.stack(tape.state(tape.final)), final[:, layer]):
            raise ReversalError(f"{tape.name}: the last steps came out differently in the two directions; no gradient "
                                "was produced")  # fmt: skip


def _shaped(given: StackArguments, sizes: Sequence[Any]) -> tuple[Tensor, ...]:
    """Tensors like those that the operator returns, with so many numbers, words and facts."""
    x, (numbers, words, facts) = given.x, sizes
    width = given.state[0].shape[-1]
    return (
        x.new_empty((*x.shape[:2], width) if given.every else (0,)),
        x.new_empty(len(given.state), *given.state[0].shape, dtype=torch.float64),
        x.new_empty(numbers, dtype=torch.float64),
        x.new_empty(words, dtype=torch.int16),
        torch.empty(facts, dtype=torch.int64),
    )


def shapes(*arguments: Any) -> tuple[Tensor, ...]:
    """Tensors like those that the operator returns, without running it."""
    given = StackArguments(*arguments)
    if not given.train:
        return _shaped(given, (0, 0, 0))
    return _shaped(given, (free_size(), free_size(), free_size()))  # how much is spilled depends on the gates


def _fake_backward(*arguments: Any) -> list[Tensor]:
    wanted, given = arguments[6], StackArguments(*arguments[7:])
    nothing = given.x.new_empty(0)
    return [
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if want else nothing.clone()
        for tensor, want in zip(given.differentiable(), wanted, strict=True)
    ]


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given = StackArguments(*inputs)
    ctx.set_materialize_grads(False)
    _, final, *others = output
    ctx.mark_non_differentiable(*others)
    optional = [given.seeds, given.lengths]
    ctx.save_for_backward(final, *others, given.x, *given.state, *given.weights, *given.masks, *optional)
    ctx.counts = (len(given.state), len(given.weights), len(given.masks))
    ctx.settings = given.settings()


def _backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if not torch.compiler.is_compiling():
        refuse_double_backward("revtune")
    final, numbers, words, facts, x, *tensors = ctx.saved_tensors
    lists = []
    for count in ctx.counts:
        lists.append(tensors[:count])
        tensors = tensors[count:]
    wants_x, wants_state, wants_weights, *_ = ctx.needs_input_grad
    wanted = [bool(wants_x), *map(bool, wants_state), *map(bool, wants_weights)]
    computed = torch.ops.revtune.stack_backward(
        dy, dfinal, final, numbers, words, facts, wanted, x, *lists, *tensors, *ctx.settings
    )
    grads = [grad if want else None for grad, want in zip(computed, wanted, strict=True)]
    states, weights, masks = ctx.counts
    return (
        grads[0], grads[1 : 1 + states], grads[1 + states :], [None] * masks,
        *[None] * (len(StackArguments._fields) - 4),
    )  # fmt: skip


torch.library.define("revtune::stack", f"({ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
torch.library.define(
    "revtune::stack_backward",
    "(Tensor? dy, Tensor? dfinal, Tensor final, Tensor numbers, Tensor words, Tensor facts, bool[] wanted, "
    f"{ARGUMENTS}) -> Tensor[]",
)
torch.library.register_autograd("revtune::stack", _backward, setup_context=_set_up)
for _name, _run, _shapes in (("stack", _stack, shapes), ("stack_backward", _stack_backward, _fake_backward)):
    torch.library.register_fake(f"revtune::{_name}")(run_whole(f"revtune::{_name}", _shapes))
    torch.library.impl(f"revtune::{_name}", ("CPU", "CUDA"))(_run)
