"""Whole training steps, chunk by chunk: encoder, recurrent stack, readout and loss, with one readout pass.

A layer that returns all its outputs has stored every state in them. Here nothing per step is returned: the sequence
runs forward through encoder and stack only; then it is rewound at once, and each chunk's readout, loss and gradients
are computed on the way. `loss.backward()` only scales those gradients and hands them to autograd, so that optimizers,
clipping and hooks work as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible import meter as metering
from revtune.reversible.cells.cell import State
from revtune.reversible.kernel.asked_once import asking_once
from revtune.reversible.kernel.chunks import pieces
from revtune.reversible.kernel.engine import Engine
from revtune.reversible.kernel.tape import Tape, TapePosition
from revtune.reversible.layers.masks import BatchSpec
from revtune.reversible.layers.resets import GivenResets, Resets
from revtune.reversible.layers.rewind import read_again
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.layers.rnn_arguments import Hx
from revtune.reversible.storage import check_all_stored, naming_lost
from revtune.reversible.streams.chunk_readout import ChunkReadout
from revtune.reversible.streams.encoder import ChunkEncoder, Encode, Encoder
from revtune.reversible.streams.gradient_sinks import Sinks
from revtune.reversible.streams.mean import Counted
from revtune.reversible.streams.memory_plan import plan
from revtune.reversible.streams.penalties import (
    ActivationPenalties,
    ChunkPenalties,
    PenaltyGradients,
)
from revtune.reversible.streams.readout_pass import ReadoutPass
from revtune.reversible.streams.reductions import Reduction
from revtune.reversible.streams.surroundings import Surroundings, scaled_down

_SUM = Reduction()


class Batch(NamedTuple):
    """A batch of sequences with what encodes it and reads it out; as in `rewind_loss`."""

    inputs: Tensor
    targets: Tensor
    encode: Encode | None
    readout: Callable[..., Any]
    state: Hx | None = None
    lengths: Tensor | None = None
    context: Sequence[Tensor] = ()
    penalties: ActivationPenalties | None = None
    resets: Tensor | None = None
    reset_state: Hx | None = None
    offsets: Tensor | None = None

    def resets_of(self, rnn: RevRNN, what: str) -> Resets | None:
        """Where rows begin anew, once the inputs are time first; `what` is the function, for messages."""
        given = GivenResets(self.resets, self.reset_state, self.offsets)
        return rnn.resets(self.inputs, given, self.lengths, carried=self.state is not None, what=what)


class Stream:
    """One batch of sequences on its way through encoder, stack and readout.

    Args:
        rnn: the net.
        batch: time first.
        segment: how many steps lie between checkpoints; None for all of them, or what `max_memory` asks for.
        max_memory: bytes, or None for no limit.
        reduction: what becomes of the losses.

    Attributes:
        penalized: penalties of each row so far, (B,) float64.
    """

    what = "rewind_loss"  # whose stream it is, for messages
    encoder_kind: Callable[..., Encoder] = Encoder
    readout_kind: Callable[..., ReadoutPass] = ReadoutPass
    chunk_kind: Callable[..., ChunkReadout] = ChunkReadout
    tangents = False  # whether tangents run beside states
    checkpoints = True  # whether the sequence may be cut into segments
    _encoder: ChunkEncoder

    def __init__(
        self, rnn: RevRNN, batch: Batch, segment: int | None = None, max_memory: int | None = None,
        reduction: Reduction = _SUM,
    ) -> None:  # fmt: skip
        inputs, device = batch.inputs, batch.inputs.device
        weight = rnn.first_weight
        self.dtype, self.steps = weight.dtype, inputs.shape[0]
        spec = BatchSpec(inputs.shape[1], weight.dtype, weight.device)
        states, engine = rnn.first_states(spec, batch.state, batched=True), rnn.engine_for(weight)
        self._resets = batch.resets_of(rnn, self.what)
        self._rnn, self._batch, self._sinks = rnn, batch, Sinks()
        self._take_stack(spec, states, engine)
        self._penalties: ChunkPenalties | None = None
        if batch.penalties is not None:
            self._penalties = ChunkPenalties(
                batch.penalties, spec.rows, self.steps, batch.lengths, device, reduction.share,
                None if self._resets is None else self._resets.at,
            )  # fmt: skip
            self.stack.note_raw()
        self.penalized = torch.zeros(spec.rows, dtype=torch.float64, device=device)
        cuts = plan(
            self.what, self.stack, self.steps, segment=segment, max_memory=max_memory,
            checkpoints=self.checkpoints, penalties=self._penalties is not None, tangents=self.tangents,
        )  # fmt: skip
        self.chunk, self.segment = cuts.chunk, cuts.segment
        self._surroundings = Surroundings(self.what, self.stack.tapes[0].weights.fingerprint)
        self._positions_read = self.readout_kind(
            batch.readout, self._sinks, device, batch.context, cuts.logit_bytes, reduction.each
        )
        self._readout = self.chunk_kind(
            self._positions_read, batch.targets, batch.lengths, self.chunk, cuts.block_bytes
        )
        self._loss = torch.zeros(spec.rows if reduction.each else (), dtype=torch.float64, device=device)
        self._last: list[TapePosition] = []
        self.stack.reuse_outputs()

    def _take_stack(self, spec: BatchSpec, states: State, engine: Engine) -> None:
        """Take up the net's stack and what encodes its chunks.

        Args:
            spec: rows, dtype and device.
            states: first states, (L, B, H) each.
            engine: the kernel that runs it, if any.
        """
        batch, rnn = self._batch, self._rnn
        self.stack, self.layers = rnn.assemble(
            self.steps, spec, states, batch.lengths, engine=engine, resets=self._resets
        )
        self._encoder = self.encoder_kind(batch.encode, batch.inputs, self._sinks, rnn.fitting, self.what)

    def evaluate(self) -> Tensor:
        """The summed loss, or that of each row, with no gradient and no buffer."""
        read = [*read_again(self.stack, self._batch.inputs), (f"{self.what}: targets", self._batch.targets)]
        with naming_lost(lambda: read), asking_once():
            if scaled_down(self._batch.encode):
                for span in pieces(0, self.steps, self.chunk):
                    self._encoder.run(*span)  # a readout may read the embedding's weight too, of all that is looked up
            self._evaluate(lambda: check_all_stored(read))
        return self._loss

    def _evaluate(self, check: Callable[[], None]) -> None:
        """Run the sequence and read it out; `check` is called before each chunk."""
        for first, last in pieces(0, self.steps, self.chunk):
            check()
            before = self._before(first)
            y = self.stack.infer(self._encoder.run(first, last), first)
            if self._penalties is not None:  # before the readout, which may write to what it is given
                self.penalized += self._penalties.losses(y, self.stack.taken_raw(), before, first)
            self._take(y, first)
        self._last = self._tape_positions()

    def _take(self, y: Tensor, first: int) -> None:
        """Read out a chunk of which no gradient is taken now."""
        self._loss += self._readout.loss(y, first)

    def _before(self, first: int) -> Tensor | None:
        """The raw outputs at the step before a chunk at which the tapes stand, (B, H), where penalties ask for them."""
        return self.stack.tapes[-1].present if first and self._penalties is not None else None

    @torch.no_grad()
    def train(self) -> Tensor:
        """The summed loss, or that of each row; gradients of the sum are then in `gradients`.

        Raises:
            ReversalError: rewinding failed, or something that is read until the end was changed on the way.
        """
        self._watch()
        with self._naming_changed():
            self._there_and_back()
        self._rest()
        return self._loss

    def _there_and_back(self) -> None:
        """Run the sequence and rewind it, with readout and gradients."""
        starts = self._forth()
        self._through(self._segments(), starts)

    @contextmanager
    def _naming_changed(self) -> Iterator[None]:
        """Within this block an error names what was changed on the way, if anything was; a device is asked once."""
        try:
            with asking_once():
                yield
        except RuntimeError as error:
            if found := self._surroundings.changed():
                raise found from error
            raise

    def _rest(self) -> None:
        """End a way through the sequence: nothing may have changed, and nothing more is needed of the last chunk."""
        self._surroundings.compare()
        for tape in self.stack.tapes:
            tape.pause()

    def _segments(self) -> list[tuple[int, int]]:
        """From where to where each segment goes."""
        return list(pieces(0, self.steps, self.segment))

    def _forth(self) -> list[list[TapePosition]]:
        """Run all segments but the last, keeping where each starts; nothing for a single one, which starts here."""
        starts = []
        for first, last in self._segments()[:-1]:
            starts.append(self._segment_start())
            for span in pieces(first, last, self.chunk):
                self._preview(*span)
        return [*starts, self._segment_start()] if starts else []

    def _through(
        self, segments: list[tuple[int, int]], starts: list[list[TapePosition]], end: list[TapePosition] | None = None
    ) -> None:
        """Run segments again, the last first, each from where it starts, and rewind them.

        Args:
            segments: from where to where each goes.
            starts: of each segment, or none for a single one that starts where the tapes stand; they are let go.
            end: where the last of them ended; None where that is not known before it has run.
        """
        for first, last in reversed(segments):
            start = starts.pop() if starts else None
            if start is not None:
                self._restart(start)
            with self._encoder.answering():
                self._run_segment(first, last, end)
            end = start

    def _watch(self) -> None:
        """Watch all that is read more than once."""
        watched, batch = self._surroundings, self._batch
        watched.watch_net(self._rnn, self.stack)
        for name, tensor in (("inputs", batch.inputs), ("targets", batch.targets), ("lengths", batch.lengths)):
            watched.watch(name, [] if tensor is None else [tensor], weights=False)
        for name, state in (("state", batch.state), ("reset_state", batch.reset_state)):
            parts = state if isinstance(state, tuple | list) else [state]
            watched.watch(name, [part for part in parts if part is not None], weights=False)
        watched.watch("one of context", batch.context, weights=False)
        watched.watch("resets", [] if self._resets is None else [self._resets.at], weights=False)
        watched.watch_held("encode", batch.encode)
        watched.watch_held("readout", batch.readout)

    @property
    def counted(self) -> Counted:
        """What the readout's losses count, as far as it was seen."""
        return self._positions_read.counted

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors that require a gradient, and their gradients; asked once, since these are given away."""
        tensors, grads = self._sinks.drain()
        for tape, layer in zip(self.stack.tapes, self.layers, strict=True):
            for tensor, grad in zip(layer.flat(), layer.gradients(tape), strict=True):
                if grad is not None and tensor.requires_grad:
                    tensors.append(tensor)
                    grads.append(grad)
        return tensors, grads

    def last_state(self) -> Hx:
        """The state after the last step, (L, B, H) each, float64."""
        states = tuple(state.detach() for state in self.whole_state(self._last_states()))
        return states[0] if len(states) == 1 else states

    def whole_state(self, states: State) -> State:
        """The last states of the net, (L, B, H) each, from those of the layers that stream."""
        return states

    def _last_states(self) -> State:
        """The last states of the layers that stream, (L, B, H) each."""
        last = [tape.state(position) for tape, position in zip(self.stack.tapes, self._last, strict=True)]
        return tuple(torch.stack(group) for group in zip(*last, strict=True))

    def _run_segment(self, first: int, last: int, end: list[TapePosition] | None) -> None:
        """Run a segment forward, turn around at its last chunk, and rewind it with readout and gradients."""
        spans = list(pieces(first, last, self.chunk))
        for span in spans[:-1]:
            self._forward(*span)
        self._pass(*spans[-1], then=lambda: self._end_segment(end, last))
        self._unwind(spans[:-1])

    def _unwind(self, spans: list[tuple[int, int]]) -> None:
        """Rewind chunks that were run, the last first, with readout and gradients."""
        for span in reversed(spans):
            self._pass(*span)

    def _preview(self, first: int, last: int) -> None:
        """Run a chunk, keeping nothing."""
        self.stack.preview(self._encoded(first, last), first)

    def _forward(self, first: int, last: int) -> None:
        """Run a chunk so that it can be rewound."""
        self.stack.forward(self._encoded(first, last), first)

    def _encoded(self, first: int, last: int, *, graph: bool = False) -> Tensor:
        """A chunk of the encoder, as its `run`; what the stack reads is there still."""
        x = self._encoder.run(first, last, graph=graph)
        self._surroundings.glance()
        return x

    def _end_segment(self, end: list[TapePosition] | None, last: int) -> None:
        """Note where the sequence ends, or check that this segment ends where it did the first time."""
        if end is None:
            self._last = [tape.taken_final() for tape in self.stack.tapes]
            self._surroundings.compare()
        else:
            self._check_end(end, last)
        metering.report(self.stack.usages())

    def _pass(self, first: int, last: int, *, then: Callable[[], None] | None = None) -> None:
        """Rewind a chunk, or record the last one of a segment, and take its readout, loss and gradients.

        Args:
            first, last: the chunk's steps.
            then: what is called once the last chunk is recorded; None for the others.
        """
        y, *beside = self._back(first, last, turning=then is not None)
        if then:
            then()
        loss, dy = self._readout.gradient(y, first, *beside)
        self._count(loss, first)
        penalized = self._penalize(y, first, *beside)
        del y, beside  # the stack's gradient needs memory, and no outputs
        self._surroundings.watch("a tensor that readout or encode reads", self._sinks.tensors())
        self._surroundings.glance()
        self._encoder.gradient(self._down(dy, penalized, first), first)

    def _count(self, loss: Tensor, first: int) -> None:
        """Count the loss of a chunk whose gradient is taken."""
        self._loss += loss

    def _penalize(self, y: Tensor, first: int, *beside: Tensor) -> PenaltyGradients | None:
        """Add the penalties of a chunk that `record` or `rewind` left; their gradients."""
        if self._penalties is None:
            return None
        penalized = self._penalties.gradient(*self._penalized_outputs(y, first, *beside), first)
        self.penalized += penalized.losses
        return penalized

    def _penalized_outputs(self, y: Tensor, first: int, *beside: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """A chunk's outputs, the raw ones and those at the step before it, as `ChunkPenalties.gradient` takes them."""
        return y, self.stack.taken_raw(), self._before(first)

    def _down(self, dy: Tensor | None, penalized: PenaltyGradients | None, first: int) -> Tensor | None:
        """Carry a chunk's gradient, and that of its penalties, down the stack."""
        wanted = self._encoder.learns
        if penalized is None:
            return self.stack.gradient(dy, first, wanted=wanted)
        if penalized.dy is not None:
            dy = penalized.dy if dy is None else penalized.dy.add_(dy)
        dx = self.stack.gradient(dy, first, draw=penalized.draw, wanted=wanted)
        if penalized.dbefore is not None:
            self.stack.tapes[-1].add_gradient(penalized.dbefore)
        return dx

    def _back(self, first: int, last: int, *, turning: bool) -> tuple[Tensor, ...]:
        """The outputs of a chunk that is rewound, or recorded where the way turns, and what the readout takes besides.

        Each is (K, B, H). What gradients need of the chunk is there then.
        """
        x = self._encoded(first, last, graph=True)
        return (self.stack.record(x, first) if turning else self.stack.rewind(x, first),)

    def _segment_start(self) -> list[TapePosition]:
        """Where a segment starts, noted so that it can be run again."""
        return self._tape_positions()

    def _tape_positions(self) -> list[TapePosition]:
        return [tape.position() for tape in self.stack.tapes]

    def _restart(self, starts: list[TapePosition]) -> None:
        for tape, start in zip(self.stack.tapes, starts, strict=True):
            tape.restart(start)

    def _check_end(self, end: list[TapePosition], last: int) -> None:
        for tape, position in zip(self.stack.tapes, end, strict=True):
            check_same_end(tape, tape.taken_final(), position, f"the steps before {last}")


def check_same_end(tape: Tape, found: TapePosition, known: TapePosition, steps: str) -> None:
    """Refuse steps that led elsewhere when they ran again.

    Args:
        tape: which ran them.
        found: where it stands.
        known: where it stood the first time.
        steps: what messages call them.

    Raises:
        ReversalError: the states differ.
    """
    if not all(torch.equal(count, found.counts[part]) for part, count in known.counts.items()):
        raise ReversalError(
            f"{tape.name}: running {steps} again did not lead to the state recorded there: something computed a gate "
            "differently the second time"
        )
