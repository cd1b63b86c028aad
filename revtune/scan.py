"""A cell over a sequence: run it, train it by rewinding, or rewind it by itself.

Forward the sequence is cut into chunks of K steps, K from a byte budget and shapes alone; only the final state, the information buffer
and one checksum a chunk are kept. Backward the chunks are rewound in the opposite order and each chunk's gradient is taken with the
values just recomputed. The last chunk keeps its gates from the forward pass: the turn-around neither spills nor rewinds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from revtune import fixed, metering
from revtune.cells import Cell, Response
from revtune.environment import Environment
from revtune.errors import NonFiniteError, StateRangeError
from revtune.stack import Stack, chunk_steps
from revtune.tape import Tape

DEFAULT_BUDGET = 6 * 2**20
"""Bytes that one chunk's gates and projections may take, over all layers that move together."""

State = tuple[Tensor, ...]


class Recording(NamedTuple):
    """A sequence that has run and can be rewound.

    Attributes:
        y: its outputs, (T, B, H).
        state: its final state as exact float64 values, one tensor (B, H) for each of the cell's states.
        stack: the layers, standing at the end.
        x: its inputs, (T, B, I).
        chunk: steps of a chunk.
        environment: the settings it ran under.
    """

    y: Tensor
    state: State
    stack: Stack
    x: Tensor
    chunk: int
    environment: Environment


def scan(
    cell: Cell,
    x: Tensor,
    state: State | None = None,
    *,
    weights: Mapping[str, Tensor],
    hidden: int | None = None,
    responses: Mapping[str, Response] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    lengths: Tensor | None = None,
    chunk: int | None = None,
    share: int | None = None,
) -> tuple[Tensor, State]:
    """Run a cell over a sequence; differentiable, by rewinding, to inputs, first state, weights and responses.

    Args:
        cell: `rev_gru()`, `rev_lstm()` or one's own.
        x: inputs, (T, B, I), of the weights' dtype.
        state: one tensor (B, H) for each of the cell's states, float32 or float64; zeros by default. It is rounded to multiples of 2^-32.
        weights: `ih` (G, I) and `bias` (G,) of the input projection (both optional: without `ih` the inputs are the projection), and
            what the cell's stages name, such as `hh`.
        hidden: H, needed only where neither `state` nor `ih` tells it.
        responses: pairs (V, s) by weight: the product becomes `W v + s * (V v)`, s of shape (B, rows of W), constant over time.
        masks: locked masks (B, N) by part, on the parts as the cell reads them.
        lengths: steps of each row, (B,), in 1..T.
        chunk: steps of a chunk; by default what fits 6 MiB.
        share: units that share a head of the buffer; by default `default_share(T, parts)`.

    Returns:
        Outputs (T, B, H) and the final state, float64 and exact if `state` was float64, else of the inputs' dtype.

    Raises:
        ValueError: shapes, dtypes or lengths do not fit.
        NonFiniteError: an input, weight, state or gate is NaN or infinite.
        StateRangeError: a state reaches 2^20.
        ReversalError: (in backward) rewinding does not return to the recorded state.

    Example:
        >>> cell, hidden = rev_gru(3.0), 4
        >>> weights = {"ih": torch.randn(12, 3), "hh": torch.randn(12, 2)}
        >>> y, (h,) = scan(cell, torch.randn(5, 2, 3), weights=weights)
        >>> y.shape, h.shape
        (torch.Size([5, 2, 4]), torch.Size([2, 4]))
    """
    state = _first_state(cell, x, state, weights, hidden)
    check_lengths(lengths, x.shape[0], x.shape[1])
    tape = build_tape(
        cell, weights, state, x.shape[0], responses=responses, masks=masks, lengths=lengths, share=share
    )
    y, finals = run(Stack([tape]), x, [TapeInputs(state, weights, responses or {})], chunk=chunk)
    return y, finals[0]


def record(
    cell: Cell, x: Tensor, state: State | None = None, *, weights: Mapping[str, Tensor], chunk: int | None = None, **options: Any
) -> Recording:
    """Run a cell over a sequence so that `unscan` can rewind it. No gradients; arguments as in `scan`.

    Unlike in training every chunk spills, the last one too.
    """
    hidden = options.pop("hidden", None)
    state = _first_state(cell, x, state, weights, hidden)
    check_lengths(options.get("lengths"), x.shape[0], x.shape[1])
    tape = build_tape(cell, weights, state, x.shape[0], **options)
    stack, environment = Stack([tape]), Environment.current()
    steps = chunk or chunk_steps(x.shape[0], x.shape[1], stack, DEFAULT_BUDGET)
    with torch.no_grad(), environment.restored(x.device):
        y = torch.cat([stack.forward(part, first) for first, part in chunks(x.detach(), steps)])
    metering.report(stack)
    return Recording(y, tape.state(), stack, x.detach(), steps, environment)


def unscan(recording: Recording) -> tuple[Tensor, State]:
    """Rewind a sequence from its final state and buffer.

    The recording is not used up: it can be rewound again.

    Returns:
        The outputs as recomputed on the way back, (T, B, H), and the first state, float64. Both equal the originals bit for bit.

    Raises:
        ReversalError: a state, a head or the buffer's depth differs from what was recorded; names the layer and the steps.

    Example:
        >>> weights = {"ih": torch.randn(12, 3), "hh": torch.randn(12, 2)}
        >>> recording = record(rev_gru(3.0), torch.randn(5, 2, 3), weights=weights)
        >>> y, (h_0,) = unscan(recording)
        >>> torch.equal(y, recording.y), bool((h_0 == 0).all())
        (True, True)
    """
    stack = recording.stack.copy()
    outputs = []
    with torch.no_grad(), recording.environment.restored(recording.x.device):
        for first, part in reversed(list(chunks(recording.x, recording.chunk))):
            outputs.append(stack.rewind(part, first))
    return torch.cat(outputs[::-1]), stack.tapes[0].state()


class TapeInputs(NamedTuple):
    """The tensors of one layer that gradients flow to."""

    state: State
    weights: Mapping[str, Tensor]
    responses: Mapping[str, Response]

    def flat(self) -> list[Tensor]:
        """All of them, in a fixed order."""
        pairs = [tensor for pair in self.responses.values() for tensor in pair]
        return [*self.state, *self.weights.values(), *pairs]

    def names(self) -> list[str]:
        """Their names: `state`, the weights' own, and `name.V`, `name.s` of a response."""
        pairs = [f"{name}.{kind}" for name in self.responses for kind in "Vs"]
        return [*("state" for _ in self.state), *self.weights, *pairs]

    def wanted(self) -> frozenset[str]:
        """The names of those that require a gradient."""
        return frozenset(name for name, tensor in zip(self.names(), self.flat(), strict=True) if tensor.requires_grad)

    def gradients(self, tape: Tape) -> list[Tensor | None]:
        """What the tape has added up for each, in the order of `flat`."""
        groups = tape.cell.states
        found: list[Tensor | None] = [
            torch.cat([tape.direction[part] for part in group], -1).to(state.dtype) if state.requires_grad else None
            for group, state in zip(groups, self.state, strict=True)
        ]
        return found + [tape.gradients.pop(name, None) for name in self.names()[len(groups) :]]


def build_tape(
    cell: Cell,
    weights: Mapping[str, Tensor],
    state: State,
    steps: int,
    *,
    responses: Mapping[str, Response] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    lengths: Tensor | None = None,
    share: int | None = None,
    name: str = "",
) -> Tape:
    """A tape that stands at `state`; arguments as in `scan`."""
    wanted = TapeInputs(state, weights, responses or {}).wanted() if torch.is_grad_enabled() else frozenset()
    start = {}
    for group, tensor in zip(cell.states, state, strict=True):
        _check_state(tensor.detach(), name or cell.name)
        for part, value in zip(group, tensor.detach().chunk(len(group), -1), strict=True):
            start[part] = fixed.to_counts(value)
    return Tape(
        cell, weights, start, steps=steps, responses=responses, masks=masks, lengths=lengths, wanted=wanted, name=name, share=share
    )


def run(
    stack: Stack, x: Tensor, inputs: list[TapeInputs], *, chunk: int | None = None, every: bool = True
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
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *tensors)):
        y, *finals = _Rewind.apply(stack, steps, every, inputs, x, *tensors)  # type: ignore[no-untyped-call]
    else:
        y, finals = _infer(stack, x.detach(), steps, every), final_states(stack, inputs)
    grouped, place = [], 0
    for tape in stack.tapes:
        grouped.append(tuple(finals[place : place + len(tape.cell.states)]))
        place += len(tape.cell.states)
    return (y if every else None), grouped


def chunks(x: Tensor, steps: int) -> Iterable[tuple[int, Tensor]]:
    """The chunks of a sequence with their first steps."""
    return ((first, x[first : first + steps]) for first in range(0, x.shape[0], steps))


def final_states(stack: Stack, inputs: list[TapeInputs]) -> list[Tensor]:
    """Where the tapes stand, as values of their first states' dtypes."""
    return [
        final.to(first.dtype)
        for tape, layer in zip(stack.tapes, inputs, strict=True)
        for final, first in zip(tape.state(), layer.state, strict=True)
    ]


def _infer(stack: Stack, x: Tensor, steps: int, every: bool) -> Tensor:
    with torch.no_grad(), Environment.current().restored(x.device):
        outputs = [stack.infer(part, first) for first, part in chunks(x, steps)]
    return torch.cat(outputs) if every else outputs[-1][:0]


class _Rewind(torch.autograd.Function):
    """A stack over a sequence whose backward rewinds."""

    @staticmethod
    def forward(
        ctx: Any, stack: Stack, steps: int, every: bool, inputs: list[TapeInputs], x: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.environment = Environment.current()
        ctx.save_for_backward(x, *tensors)
        ctx.stack, ctx.steps, ctx.every, ctx.layout = stack, steps, every, inputs
        with ctx.environment.restored(x.device):
            outputs = []
            for first, part in chunks(x, steps):
                last = first + steps >= x.shape[0]
                y = stack.record(part, first) if last else stack.forward(part, first)
                outputs.append(y if every else y[:0])
            finals = _recorded_finals(stack, inputs)
        metering.report(stack)
        return (torch.cat(outputs), *finals)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *dfinals: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "revtune does not support double backward: a rewound gradient has no graph of its own; use create_graph=False"
            )
        x = ctx.saved_tensors[0]
        stack = ctx.stack.copy()
        aim(stack, dfinals)
        dx = torch.empty_like(x) if ctx.needs_input_grad[4] else None
        with ctx.environment.restored(x.device):
            for first, part in reversed(list(chunks(x, ctx.steps))):
                last = first + ctx.steps >= x.shape[0]
                if not last:
                    stack.rewind(part, first)
                grad = stack.gradient(dy[first : first + ctx.steps] if ctx.every else None, first, keep=last)
                if dx is not None:
                    dx[first : first + ctx.steps] = grad
        found = [grad for tape, layer in zip(stack.tapes, ctx.layout, strict=True) for grad in layer.gradients(tape)]
        return (None, None, None, None, dx, *found)


def aim(stack: Stack, dfinals: Iterable[Tensor | None]) -> None:
    """Start the backward pass from the gradients of the final states, one (B, H) for each state of each tape."""
    grads = iter(dfinals)
    for tape in stack.tapes:
        for group in tape.cell.states:
            grad = next(grads)
            if grad is not None:
                for part, piece in zip(group, grad.to(tape.dtype).chunk(len(group), -1), strict=True):
                    tape.direction[part] = piece


def _recorded_finals(stack: Stack, inputs: list[TapeInputs]) -> list[Tensor]:
    """The state after the recorded chunk, in the first states' dtypes."""
    return [
        fixed.from_counts(torch.cat([tape.final[part] for part in group], -1), first.dtype)
        for tape, layer in zip(stack.tapes, inputs, strict=True)
        for group, first in zip(tape.cell.states, layer.state, strict=True)
    ]


def _first_state(
    cell: Cell, x: Tensor, state: State | None, weights: Mapping[str, Tensor], hidden: int | None
) -> State:
    if x.dim() != 3 or 0 in x.shape[:2]:
        raise ValueError(f"{cell.name}: x must be (T, B, I) with T >= 1 and B >= 1, got {tuple(x.shape)}")
    if state is not None:
        if len(state) != len(cell.states):
            raise ValueError(f"{cell.name}: state must be {len(cell.states)} tensors (B, H), got {len(state)}")
        return state
    blocks = (weights["ih"].shape[0] if "ih" in weights else x.shape[-1]) / cell.blocks
    size = hidden or int(blocks * len(cell.states[0]))
    return tuple(x.new_zeros(x.shape[1], size // len(cell.states[0]) * len(group)) for group in cell.states)


def check_lengths(lengths: Tensor | None, steps: int, rows: int) -> None:
    """Refuse lengths that are not one of 1..T for each row.

    Raises:
        ValueError: wrong shape, dtype or range.
    """
    if lengths is None:
        return
    if lengths.shape != (rows,) or lengths.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"lengths must be {rows} integers, one a row, got {lengths.dtype} of shape {tuple(lengths.shape)}")
    if not (1 <= int(lengths.min()) and int(lengths.max()) <= steps):
        bad = int(((lengths < 1) | (lengths > steps)).nonzero()[0])
        raise ValueError(f"lengths must lie in 1..{steps}, the steps of the input, got {int(lengths[bad])} in row {bad}")


def _check_state(state: Tensor, name: str) -> None:
    peak = state.abs().amax() if state.numel() else torch.zeros(())
    if not bool(peak.isfinite()):
        raise NonFiniteError(f"{name}: the first state is not finite")
    if float(peak) >= fixed.STATE_RANGE:
        raise StateRangeError(f"{name}: the first state holds {float(peak):g}, outside the exact range |h| < 2^20")
