"""Delta-STN's training step for responses, streamed: the loss of a prediction that is linear in them.

A second exact trajectory runs at no departure, its masks drawn at perturbed rates. Beside it runs its tangent, how
states, outputs and prediction move with the departures (Bae and Grosse 2020)::

    f(d)  ~  f(0) + J r(d)

On the way back each chunk is rewound, and the loss's gradient at `f(0) + J r(d)` goes backward through f(0), as on any
way back. The tangent itself is never rewound. It is kept at the starts of chunks, from which it runs again; that of the
outputs of short sequences is kept whole, as nothing else of it is needed on the way back.

Shapes: T time, K steps of a chunk, B batch, I input, H hidden, N units of a part, G rows of a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from revtune.joint.linear_parts import LinearEncoder, LinearReadout
from revtune.joint.rev_layers import ResponseRev
from revtune.joint.tangent_starts import Moved, TangentStarts
from revtune.reversible.kernel.tape import Tape, TapePosition
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.layers.rnn_arguments import Hx
from revtune.reversible.layers.stack import Link
from revtune.reversible.own_pages import copied
from revtune.reversible.streams.loss import rewind_loss, stream_loss
from revtune.reversible.streams.stream import Batch, Stream
from revtune.tuning.hypers.hyperparameters import Hyperparameters

KEPT = 16 * 2**20
"""Bytes up to which the outputs' tangent is kept whole, unless memory is limited: it need not run again then."""


def linear_rewind_loss(hypers: Hyperparameters, **given: Any) -> tuple[Tensor, Hx]:
    """`rewind_loss` of the prediction that is linear in responses, in a pass that linearizes.

    Args:
        hypers: whose pass is bound, with departures and a record.
        given: the arguments of `rewind_loss`, by name. The readout is a `LinearCrossEntropy` or a `Readout`, outputs
            that are linear in responses are penalized, and there is no context.

    Raises:
        ValueError: there is a context, inputs or state require a gradient, or the readout does not tell where the
            prediction ends.
    """
    bound = signature(rewind_loss).bind(**given)
    bound.apply_defaults()
    asked = bound.arguments
    batch = Batch(**{name: asked.pop(name) for name in Batch._fields})
    if isinstance(batch.context, tuple | list) and batch.context:
        raise ValueError(
            "context: what the readout takes besides would move with hyperparameters too, as attention does, and "
            'Delta-STN does not follow that; use method="stn"'
        )
    _refuse_gradient("inputs", batch.inputs)
    for name, states in (("state", batch.state), ("reset_state", batch.reset_state)):
        for one in states if isinstance(states, tuple | list) else (states,):
            _refuse_gradient(name, one)

    def kind_of(rnn: RevRNN) -> Callable[..., Stream]:
        if rnn.bidirectional:
            raise ValueError(
                "Delta-STN streams nets of one direction, as it does not follow how both directions of a net move with "
                'hyperparameters, got a bidirectional one; use method="stn"'
            )
        return partial(LinearStream, hypers)

    return stream_loss(kind_of, asked.pop("rnn"), batch, **asked)


def _refuse_gradient(name: str, tensor: object) -> None:
    if isinstance(tensor, Tensor) and tensor.requires_grad:
        raise ValueError(
            f"{name} must require no gradient in Delta-STN's pass for responses, which would not follow how they move "
            'with hyperparameters: let encode compute inputs, detach what is given, or use method="stn"'
        )


class LinearStream(Stream):
    """A stream whose states, outputs and prediction have tangents.

    Args:
        hypers: whose pass is bound.
        others: those of `Stream`.
    """

    tangents = True
    _encoder: LinearEncoder

    def __init__(
        self, hypers: Hyperparameters, rnn: RevRNN, batch: Batch, segment: int | None = None,
        max_memory: int | None = None, *others: Any,
    ) -> None:  # fmt: skip
        self.encoder_kind, self.readout_kind = partial(LinearEncoder, hypers), partial(LinearReadout, hypers)
        super().__init__(rnn, batch, segment, max_memory, *others)
        rows, layers = batch.inputs.shape[1], len(self.stack.tapes)
        self._shifts = rnn.shifts(rows) if isinstance(rnn, ResponseRev) else [None] * layers
        self._moved: Moved = [{} for _ in range(layers)]  # before the chunk that is next
        self._start: Moved = []  # before the chunk that was rewound last
        self._raw_tangent: Tensor | None = None  # of its raw outputs
        device, dtype = batch.inputs.device, self.stack.tapes[0].dtype
        self._starts = TangentStarts(device, dtype)  # before each chunk of the present segment that has been run
        self._segment_starts = TangentStarts(device, dtype)
        needed = min(self.segment, self.steps) * rows * rnn.hidden_size * dtype.itemsize
        self._keeps = max_memory is None and needed <= KEPT
        self._kept = TangentStarts(device, dtype)  # of each chunk's raw outputs, where they are kept

    def _preview(self, first: int, last: int) -> None:
        self._ahead(first, last, keep=False)

    def _forward(self, first: int, last: int) -> None:
        self._starts.push(self._moved)
        self._ahead(first, last, keep=True)
        if self._keeps:
            assert self._raw_tangent is not None
            self._kept.push([{"y": self._raw_tangent}])

    def _ahead(self, first: int, last: int, *, keep: bool) -> None:
        """Run a chunk and its tangent."""

        def run(tape: Tape, x: Tensor, dx: Tensor | None, layer: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            return tape.ahead(x, first, dx, self._shifts[layer], self._moved[layer], keep=keep)

        *_, self._moved = self._up(self._encoded(first, last), first, run)

    def _back(self, first: int, last: int, *, turning: bool) -> tuple[Tensor, ...]:
        (kept,) = self._kept.pop() if self._kept and not turning else ({},)
        top = len(self.stack.tapes) - 1

        def run(
            tape: Tape, x: Tensor, dx: Tensor | None, layer: int
        ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
            y = tape.record(x, first) if turning else tape.rewind(x, first)
            if kept:
                return y, kept["y"] if layer == top else None, {}
            return y, *tape.tangent(x, first, dx, self._shifts[layer], self._moved[layer])

        y, dy, _ = self._up(self._encoded(first, last, graph=True), first, run, keep=True)
        self._start, self._moved = self._moved, self._starts.pop() if self._starts else []
        return y, dy

    def _penalized_outputs(self, y: Tensor, first: int, *beside: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        (dy,), top = beside, self._start[-1]
        assert self._raw_tangent is not None
        _, raw, before = super()._penalized_outputs(y, first)
        if before is not None and top:
            before = before + torch.cat([top[part] for part in self.stack.tapes[-1].cell.states[0]], -1)
        return y + dy, raw + self._raw_tangent, before

    def _up(self, x: Tensor, first: int, run: Any, *, keep: bool = False) -> tuple[Tensor, Tensor, Moved]:
        """Pass a chunk and its tangent through all links: outputs, their tangents, and the states' after them."""
        dx, moved = self._encoder.tangent, Moved()

        def move(link: Link, x: Tensor) -> Tensor:
            nonlocal dx
            if not isinstance(link, Tape):
                dx = None if dx is None else link.apply(dx, first)
                return link.apply(x, first)
            y, dx, after = run(link, x, dx, len(moved))
            moved.append({part: copied(tangent) for part, tangent in after.items()})
            self._raw_tangent = dx
            return y

        y = self.stack.up(x, move, keep=keep)
        assert dx is not None
        return y, dx, moved

    def _segment_start(self) -> list[TapePosition]:
        self._segment_starts.push(self._moved)
        return super()._segment_start()

    def _restart(self, starts: list[TapePosition]) -> None:
        self._moved = self._segment_starts.pop()
        super()._restart(starts)
