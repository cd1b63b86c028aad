"""A cell over a sequence: run it, train it by rewinding, or rewind it by itself.

Forward the sequence is cut into chunks of K steps, K from a byte budget and shapes alone; only the final state, the
information buffer and one checksum a chunk are kept. Backward the chunks are rewound in the opposite order and each
chunk's gradient is taken with the values just recomputed. The last chunk keeps its gates from the forward pass: the
turn-around neither spills nor rewinds.

Shapes: T time, B batch, I input, H hidden, N units of a part, G gates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from revtune import fixed, metering
from revtune.arguments import State, check_arguments, check_kinds, first_state
from revtune.cells import Cell, Response
from revtune.checks import check_numbers, check_state, fingerprint
from revtune.environment import Environment
from revtune.errors import ReversalError
from revtune.kernel import chosen
from revtune.native_tape import NativeTape
from revtune.reference import ReferenceTape
from revtune.sequence import sequence
from revtune.stack import DEFAULT_BUDGET, Stack, chunk_steps
from revtune.tape import Place, Tape
from revtune.transforms import refuse_batches, refuse_transforms
from revtune.weights import Weights


class LayerInputs(NamedTuple):
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
        return found + [tape.weights.gradients.pop(name, None) for name in self.names()[len(groups) :]]


class Recording(NamedTuple):
    """A sequence that has run and can be rewound.

    Attributes:
        y: its outputs, (T, B, H).
        state: its final state as exact float64 values, one tensor (B, H) for each of the cell's states.
        tape: the layer, standing at the end.
        x: its inputs, (T, B, I).
        chunk: steps of a chunk.
        environment: the settings it ran under.
    """

    y: Tensor
    state: State
    tape: Tape
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
    backend: str = "auto",
) -> tuple[Tensor, State]:
    """Run a cell over a sequence; differentiable, by rewinding, to inputs, first state, weights and responses.

    Args:
        cell: `rev_gru()`, `rev_lstm()` or one's own.
        x: inputs, (T, B, I), float32 or float64.
        state: one tensor (B, H) for each of the cell's states, of x's dtype or float64, rounded to multiples of 2^-32;
            zeros by default.
        weights: `ih` (G, I) and `bias` (G,) of the input projection (both optional: without `ih` the inputs are the
            projection), and what the cell's stages name, such as `hh`; of x's dtype.
        hidden: H, needed only where neither `state`, `ih` nor x tells it.
        responses: pairs (V, s) by weight: the product becomes `W v + s * (V v)`, V like W, s (B, rows of W), constant
            over time.
        masks: locked masks (B, N) by part, on the parts as the cell reads them.
        lengths: steps of each row, (B,), in 1..T.
        chunk: steps of a chunk; by default what fits 3 MiB, at least 4.
        share: units that share a head of the buffer; by default `default_share(T, parts)`.
        backend: "auto", "native" (the C++ kernel: RevGRU and RevLSTM in float32 on the CPU) or "reference".

    Returns:
        Outputs (T, B, H) and the final state, exact where the first state was float64, else of its dtype.

    Raises:
        ValueError: shapes, dtypes, names or lengths do not fit.
        NonFiniteError: an input, weight, state or gate is NaN or infinite.
        StateRangeError: a state reaches 2^20.
        ReversalError: (in backward) rewinding does not return to the recorded state.

    Example:
        >>> weights = {"ih": torch.randn(12, 3), "hh": torch.randn(12, 2)}
        >>> y, (h,) = scan(rev_gru(3.0), torch.randn(5, 2, 3), weights=weights)
        >>> y.shape, h.shape
        (torch.Size([5, 2, 4]), torch.Size([2, 4]))
    """
    inputs = _checked(cell, x, state, weights, hidden, responses, masks, lengths, chunk)
    return run_layer(
        cell, x, inputs, chunk=chunk, masks=masks, lengths=lengths, share=share, name=cell.name, backend=backend
    )


def record(
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
    backend: str = "auto",
) -> Recording:
    """Run a cell over a sequence so that `unscan` can rewind it; no gradients. Arguments and errors as in `scan`.

    Unlike in training every chunk spills, the last one too.
    """
    inputs = _checked(cell, x, state, weights, hidden, responses, masks, lengths, chunk)
    refuse_transforms([x])
    tape = build_tape(cell, inputs, x.shape[0], x.dtype, masks=masks, lengths=lengths, share=share, backend=backend)
    stack, environment, x = Stack([tape]), Environment.current(), x.detach()
    steps = chunk or chunk_steps(x.shape[0], x.shape[1], stack, DEFAULT_BUDGET)
    with torch.no_grad(), environment.restored(x.device):
        y = torch.cat([tape.forward(part, first) for first, part in chunks(x, steps)])
    metering.report(stack.usages())
    return Recording(y, tape.state(), tape, x, steps, environment)


def unscan(recording: Recording) -> tuple[Tensor, State]:
    """Rewind a sequence from its final state and buffer. The recording is not used up: it can be rewound again.

    Returns:
        The outputs as recomputed on the way back, (T, B, H), and the first state, float64. Both equal the originals
        bit for bit.

    Raises:
        ReversalError: a state, a head or the buffer's depth differs from what was recorded; names the layer and the
            steps.

    Example:
        >>> weights = {"ih": torch.randn(12, 3), "hh": torch.randn(12, 2)}
        >>> recording = record(rev_gru(3.0), torch.randn(5, 2, 3), weights=weights)
        >>> y, (h_0,) = unscan(recording)
        >>> torch.equal(y, recording.y), bool((h_0 == 0).all())
        (True, True)
    """
    tape, outputs = recording.tape.copy(), []
    with torch.no_grad(), recording.environment.restored(recording.x.device):
        for first, part in reversed(list(chunks(recording.x, recording.chunk))):
            outputs.append(tape.rewind(part, first))
    return torch.cat(outputs[::-1]), tape.state()


def _checked(
    cell: Cell,
    x: Tensor,
    state: State | None,
    weights: Mapping[str, Tensor],
    hidden: int | None,
    responses: Mapping[str, Response] | None,
    masks: Mapping[str, Tensor] | None,
    lengths: Tensor | None,
    chunk: int | None,
) -> LayerInputs:
    """Checked arguments as the tensors that gradients flow to."""
    check_kinds(cell, x, state, weights, responses or {}, masks or {})
    inputs = LayerInputs(first_state(cell, x, state, weights, hidden), weights, responses or {})
    check_arguments(cell, x, inputs.state, weights, inputs.responses, masks or {}, lengths, chunk)
    return inputs


def run_layer(
    cell: Cell,
    x: Tensor,
    inputs: LayerInputs,
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
    inputs: LayerInputs,
    steps: int,
    dtype: torch.dtype,
    *,
    masks: Mapping[str, Tensor] | None = None,
    lengths: Tensor | None = None,
    share: int | None = None,
    name: str = "",
    backend: str = "auto",
) -> Tape:
    """A tape that stands at the first state; arguments as in `scan`."""
    refuse_transforms(inputs.flat())
    wanted = inputs.wanted() if torch.is_grad_enabled() else frozenset()
    counts = {}
    for group, tensor in zip(cell.states, inputs.state, strict=True):
        check_numbers(f"{name or cell.name}: input", tensor)
        check_state(tensor, f"{name or cell.name}: the first state")
        for part, value in zip(group, tensor.detach().chunk(len(group), -1), strict=True):
            counts[part] = fixed.to_counts(value)
    units = counts[cell.parts[0]].shape[-1]
    native = chosen(backend, cell, inputs.state[0].new_empty(0, dtype=dtype), inputs.weights, masks or {})
    weights = Weights(inputs.weights, inputs.responses, wanted, units, name or cell.name, native=native)
    kind = NativeTape if native else ReferenceTape
    return kind(
        cell, weights, Place(counts), steps=steps, dtype=dtype, masks=masks, lengths=lengths, name=name, share=share
    )


def run(
    stack: Stack, x: Tensor, inputs: list[LayerInputs], *, chunk: int | None = None, every: bool = True
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
        y, finals = _infer(stack, x.detach(), steps, every), _finals(stack, inputs, [t.state() for t in stack.tapes])
    places = iter(finals)
    grouped = [tuple(next(places) for _ in tape.cell.states) for tape in stack.tapes]
    return (y if every else None), grouped


def chunks(x: Tensor, steps: int) -> Iterable[tuple[int, Tensor]]:
    """The chunks of a sequence with their first steps."""
    return ((first, x[first : first + steps]) for first in range(0, x.shape[0], steps))


class _Rewind(torch.autograd.Function):
    """A stack over a sequence whose backward rewinds."""

    @staticmethod
    def forward(
        ctx: Any, stack: Stack, steps: int, every: bool, inputs: list[LayerInputs], x: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.environment = Environment.current()
        ctx.save_for_backward(x, *tensors, *(mask for tape in stack.tapes for mask in tape.masks.values()))
        ctx.stack, ctx.steps, ctx.every, ctx.inputs = stack, steps, every, inputs
        ctx.fingerprints = _fingerprints(stack, x)
        outputs = []
        with ctx.environment.restored(x.device):
            for first, part in chunks(x, steps):
                last = first + steps >= x.shape[0]
                y = stack.record(part, first) if last else stack.forward(part, first)
                outputs += [y] if every else []
            finals = _finals(stack, inputs, [tape.state(tape.final) for tape in stack.tapes])
        metering.report(stack.usages())
        return (torch.cat(outputs) if every else x.new_empty(0), *finals)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *dfinals: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "revtune does not support double backward: a rewound gradient has no graph; use create_graph=False"
            )
        refuse_batches([dy, *dfinals])
        x = ctx.saved_tensors[0]
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        stack = ctx.stack.copy() if keep else ctx.stack
        _check_unchanged(stack, x, ctx.fingerprints)
        _aim(stack, dfinals)
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


def _fingerprints(stack: Stack, x: Tensor) -> list[tuple[str, int]]:
    """What must be the same in both directions, by name: the input, weights, masks and lengths."""
    found = [(f"{stack.tapes[0].name}: input", fingerprint(x))]
    for tape in stack.tapes:
        found += [(f"{tape.name}: weight {name!r}", number) for name, number in tape.weights.fingerprints()]
        found += [(f"{tape.name}: mask {part!r}", fingerprint(mask)) for part, mask in tape.masks.items()]
        if tape.lengths is not None:
            found.append((f"{tape.name}: lengths", fingerprint(tape.lengths)))
    return found


def _check_unchanged(stack: Stack, x: Tensor, before: list[tuple[str, int]]) -> None:
    for (what, known), (_, number) in zip(before, _fingerprints(stack, x), strict=True):
        if number != known:
            raise ReversalError(
                f"{what} was changed (through .data?) between forward and backward; no gradient was produced"
            )


def _aim(stack: Stack, dfinals: Iterable[Tensor]) -> None:
    """Start the backward pass from the gradients of the final states, one (B, H) for each state of each tape."""
    grads = iter(dfinals)
    for tape in stack.tapes:
        direction: dict[str, Tensor] = {}
        for group in tape.cell.states:
            direction |= zip(group, next(grads).to(tape.dtype).chunk(len(group), -1), strict=True)
        tape.aim(direction)


def _infer(stack: Stack, x: Tensor, steps: int, every: bool) -> Tensor:
    with torch.no_grad(), Environment.current().restored(x.device):
        if every:
            return torch.cat([stack.infer(part, first) for first, part in chunks(x, steps)])
        for first, part in chunks(x, steps):
            stack.infer(part, first)
        return x.new_empty(0)


def _finals(stack: Stack, inputs: list[LayerInputs], states: list[State]) -> list[Tensor]:
    """Final states in the dtypes of the first ones."""
    return [
        final.to(first.dtype)
        for layer, state in zip(inputs, states, strict=True)
        for final, first in zip(state, layer.state, strict=True)
    ]
