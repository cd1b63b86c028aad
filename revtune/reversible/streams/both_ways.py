"""Bidirectional nets, streamed: while one direction rewinds, the other runs, so that both outputs of a step are there.

The forward direction F runs to the end alone. Then it rewinds from T to 0 while the backward direction R runs from T to
0, which is its own forward: each chunk is read out, and F's gradient taken. Then R rewinds from 0 to T while F runs
again, each chunk is read out again, and R's gradient taken. Nothing of width H is kept of a step.

    F forward                    chunks 0, 1, 2, 3
    F rewinds, R forward         chunks 3, 2, 1, 0     gradients of F and the readout; at chunk 0 of R too
    R rewinds, F forward again   chunks 1, 2, 3        gradients of R; the readout's losses must be the same

Of several layers the top one alone streams (below.py).

Shapes: T time, K steps of a chunk, B batch, H hidden, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible import meter as metering
from revtune.reversible.cells.cell import State
from revtune.reversible.kernel.chunks import pieces
from revtune.reversible.kernel.engine import Engine
from revtune.reversible.kernel.tape import TapePosition
from revtune.reversible.layers.both_ways import BothWays, assemble_both_ways
from revtune.reversible.layers.masks import BatchSpec
from revtune.reversible.layers.stack import Move
from revtune.reversible.own_pages import Room
from revtune.reversible.streams.below import Below
from revtune.reversible.streams.output_stream import OutputStream
from revtune.reversible.streams.penalties import PenaltyGradients
from revtune.reversible.streams.stream import Stream, check_same_end

AHEAD, BACK = 0, 1
"""The numbers of the directions, which stand in this order in states, outputs and gradients."""


class StreamBothWays(Stream):
    """One batch of sequences on its way through both directions of a net; arguments as in `Stream`."""

    checkpoints = False
    stack: BothWays  # type: ignore[assignment]  # in the place of one stack

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._positions_read.replay()
        self._spans = list(pieces(0, self.steps, self.chunk))
        self._moves: dict[int, Move] = {}  # how each direction passes the present chunk
        self._taking: Sequence[int] = ()  # the directions whose gradients are taken there
        self._room = Room()
        # In one tensor: small ones that live long keep C's heap from joining what comes and goes with each chunk
        self._losses = self._loss.new_zeros(len(self._spans), *self._loss.shape)

    def _take_stack(self, spec: BatchSpec, states: State, engine: Engine) -> None:
        batch, rnn = self._batch, self._rnn
        self.stack, self.layers = assemble_both_ways(
            rnn, self.steps, spec, states, batch.lengths, engine=engine, resets=self._resets
        )
        if rnn.num_layers == 1:
            self._encoder = self.encoder_kind(batch.encode, batch.inputs, self._sinks, rnn.fitting, self.what)
        else:
            self._encoder = Below(
                rnn, batch.encode, batch.inputs, states, batch.lengths, self._resets, self._sinks, engine=engine,
                dropout=self.stack.below,
            )  # fmt: skip

    def whole_state(self, states: State) -> State:
        return self._encoder.whole_state(states) if isinstance(self._encoder, Below) else states

    def _evaluate(self, check: Callable[[], None]) -> None:
        self._run_ahead()
        self._run_back(self.stack.ways[BACK].infer, check)

    def _run_ahead(self) -> None:
        """Run the forward direction alone."""
        for span in self._spans:
            self.stack.ways[AHEAD].forward(self._encoded(*span), span[0])
        metering.report(self.stack.ways[AHEAD].usages())
        self._last = self._tape_positions()

    def _run_back(self, move: Move, check: Callable[[], None] = lambda: None) -> None:
        """Rewind the forward direction while the backward one passes each chunk by `move`, and read out."""
        for first, last in reversed(self._spans):
            check()
            x = self._encoded(first, last)
            self._take(self._joined(self.stack.ways[AHEAD].rewind(x, first), move(x, first)), first)
        self._last[BACK] = self.stack.tapes[BACK].position()

    def _there_and_back(self) -> None:
        with self._encoder.answering():
            self._run_ahead()
            self._last[BACK] = self._two_sweeps(AHEAD)

    def _two_sweeps(self, way: int) -> TapePosition:
        """Take the gradients of both directions: this one rewinds while the other runs, and then the other way round.

        Args:
            way: the direction that has run and rewinds first; the other stands at its first state.

        Returns:
            Where the other direction ends.
        """
        one, other = self.stack.ways[way], self.stack.ways[1 - way]
        *spans, meeting = self._spans[::-1] if way == AHEAD else self._spans
        ends = one.tapes[0].position()
        self._positions_read.gathers = True
        for span in spans:
            self._sweep(span, {way: one.rewind, 1 - way: other.forward}, [way])
        metering.report(other.usages() if way == AHEAD else [])  # what runs again has been told
        self._sweep(meeting, {way: one.rewind, 1 - way: other.record}, [AHEAD, BACK])
        self._positions_read.gathers = False
        one.preview(self._encoded(*meeting), meeting[0])  # from its first state, where rewinding has led
        for span in reversed(spans):
            self._sweep(span, {way: one.preview, 1 - way: other.rewind}, [1 - way])
        check_same_end(one.tapes[0], one.tapes[0].position(), ends, "all steps")
        return other.tapes[0].taken_final()

    def _sweep(self, span: tuple[int, int], moves: dict[int, Move], taking: Sequence[int]) -> None:
        """Pass a chunk, each direction by its move, read it out, and take the gradients of some directions."""
        self._moves, self._taking = moves, taking
        self._pass(*span)

    def _back(self, first: int, last: int, *, turning: bool) -> tuple[Tensor, ...]:
        x = self._encoded(first, last, graph=True)
        return (self._joined(*(self._moves[way](x, first) for way in (AHEAD, BACK))),)

    def _joined(self, ahead: Tensor, back: Tensor) -> Tensor:
        """A chunk's outputs in both directions, (K, B, 2 H)."""
        room = self._room.tensor(ahead, (*ahead.shape[:2], 2 * ahead.shape[2]))
        return torch.cat([ahead, back], -1, out=room)

    def _count(self, loss: Tensor, first: int) -> None:
        known = self._losses[first // self.chunk]
        if self._positions_read.gathers:
            super()._count(loss, first)
            known.copy_(loss)
        elif not self._positions_read.same(loss.to(self.dtype), known.to(self.dtype)):  # both of the net's precision
            raise ReversalError(
                f"{self.what}: readout gave another loss when it was given the same positions again; it must depend on "
                "nothing but its arguments, its weights and what torch draws; no gradient was produced"
            )

    def _down(self, dy: Tensor | None, penalized: PenaltyGradients | None, first: int) -> Tensor | None:
        halves = [None, None] if dy is None else dy.chunk(2, -1)
        wanted, dx = self._encoder.learns, None
        for way in self._taking:
            grad = self.stack.ways[way].gradient(halves[way], first, wanted=wanted)
            dx = grad if dx is None or grad is None else dx + grad
        return dx


class OutputsBothWays(OutputStream, StreamBothWays):
    """One batch of sequences on its way through both directions of a net, whose outputs are kept."""

    def _outward(self) -> None:
        self._run_ahead()
        self._run_back(self.stack.ways[BACK].forward)
        metering.report(self.stack.ways[BACK].usages())
        self._end = self._last[AHEAD]

    def _homeward(self) -> None:
        with self._encoder.answering():
            end = self._two_sweeps(BACK)
        check_same_end(self.stack.tapes[AHEAD], end, self._end, "all steps")
