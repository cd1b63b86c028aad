"""Whole training steps, chunk by chunk: encoder, recurrent stack, readout and loss, with one readout pass.

A layer that returns all its outputs has stored every state in them. Here nothing per step is returned: the sequence
runs forward through encoder and stack only; then it is rewound at once, and each chunk's readout, loss and gradients
are computed on the way. `loss.backward()` only scales those gradients and hands them to autograd, so that optimizers,
clipping and hooks work as ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible import meter as metering
from revtune.reversible.arguments import check_lengths, check_tensor, is_size, running
from revtune.reversible.kernel.chunks import pieces
from revtune.reversible.kernel.tape import TapePosition
from revtune.reversible.kernel.untraced import untraced
from revtune.reversible.layers.masks import BatchSpec, one_sequence
from revtune.reversible.layers.resets import GivenResets, Resets
from revtune.reversible.layers.rewind import read_again
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.layers.rnn_arguments import Hx
from revtune.reversible.storage import check_all_stored, naming_lost
from revtune.reversible.streams.chunk_readout import ChunkReadout
from revtune.reversible.streams.encoder import Encode, Encoder
from revtune.reversible.streams.gradient_sinks import Sinks
from revtune.reversible.streams.known_gradients import with_gradients
from revtune.reversible.streams.mean import Counted, Normalizer, mean_weight, total_weight
from revtune.reversible.streams.memory_plan import checked_memory, plan
from revtune.reversible.streams.penalties import (
    ActivationPenalties,
    ChunkPenalties,
    PenaltyGradients,
    check_penalties,
)
from revtune.reversible.streams.readout_pass import ReadoutFunction, ReadoutPass
from revtune.reversible.streams.reductions import Reduction, check_reduction
from revtune.reversible.streams.stream_checks import check_parts, check_tensors
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


def rewind_loss(
    rnn: RevRNN,
    inputs: Tensor,
    targets: Tensor,
    *,
    encode: Encode | None = None,
    readout: ReadoutFunction,
    state: Hx | None = None,
    lengths: Tensor | None = None,
    context: Sequence[Tensor] = (),
    reduction: Literal["mean", "sum", "rows"] = "mean",
    normalizer: Normalizer | None = None,
    penalties: ActivationPenalties | None = None,
    checkpoint_every: int | Literal["auto"] | None = None,
    max_memory: int | str | None = None,
    resets: Tensor | None = None,
    reset_state: Hx | None = None,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Hx]:
    """The loss of a recurrent net over a sequence, in memory that hardly depends on its length.

    Args:
        rnn: a RevGRU or RevLSTM, not bidirectional.
        inputs: (T, B, ...), or (B, T, ...) if the net is batch_first.
        targets: likewise; what `readout` expects.
        encode: maps a time-first chunk of inputs to (K, B, I), each step by itself: an embedding, any module or
            function. None if inputs are features. A chunk is encoded two or three times, with the same random draws,
            which torch's own generator has no part in (one compiled by torch.compile runs uncompiled for that).
        readout: `readout(y, targets)` with y (N, H) gives the *sum* of its N positions' losses. They come time first:
            the B rows of a step, then those of the next, padded positions left out. Gradients reach every tensor that
            it uses but the targets. `LinearCrossEntropy` is the fast one. On the first call with an encoder or readout
            it is tried on a few steps: one that does not stream is refused. Delta-STN wants `LinearCrossEntropy` or a
            `Readout`, which tells where the prediction ends.
        state: `h_0`, or `(h_0, c_0)`, (L, B, H); pass on what the previous call returned for truncated
            backpropagation. Zeros by default. Gradients flow to one that requires them.
        lengths: steps of each row, (B,), in 1..T. Padded inputs must still be finite numbers or valid ids.
        context: tensors that the readout takes besides, `readout(y, targets, *context)`, such as annotations of another
            sequence (`rewind_encode`); their gradients are added up over chunks and reach them once.
        reduction: "mean" divides by the number of positions (or by `readout.total_weight(targets)`), "sum" does not.
            "rows" gives losses (B,) whose mean is that of "mean": row b's summed loss times B over what "mean" divides
            by. Gradients were computed for that mean, so that they are right for `losses.mean()`, `losses.sum()` or any
            multiple, and refused for another weight of each row. `readout` must be a `LinearCrossEntropy`, or one that
            attends (`revtune.attention`), or return the losses (N,) of its positions.
        normalizer: what "mean" divides by instead: a number, or `normalizer(targets)` of the targets (N, ...) that are
            no padding. A readout that tells torch to leave targets out (`ignore_index` of F.cross_entropy), or to weigh
            classes or positions, must have one; a mask that it multiplies by itself, or targets that it computes, are
            not seen, and all positions count.
        penalties: `ActivationPenalties` of the last layer's outputs, of each row. "mean" adds their mean over rows to
            the loss, whatever it divides the positions' losses by, "sum" adds their sum, "rows" each row's to its own.
            None costs nothing.
        checkpoint_every: keep the state every so many steps and the buffer of one such segment only, for one more
            forward pass; "auto" takes sqrt(64 T) steps, which stores least at one forgotten bit a step.
        max_memory: the most memory that a call may take, in bytes or as "20MB", above the parameters, their gradients,
            inputs and targets. Shapes and the limit on forgetting alone then decide how chunks, a readout's blocks and,
            unless `checkpoint_every` says so, checkpoints are cut. What `encode` itself makes is not counted.
        resets: before which steps a row begins anew, (T, B) bool, or (B, T) if the net is batch_first, as where
            episodes end; none may be beyond a row's length. It then goes on as if it stood alone, and no gradient
            crosses. Each costs 72 to 80 stored bits a unit. Temporal penalties leave out what differs across one.
        reset_state: what rows begin anew from, `h` or `(h, c)`, (L, B, H), or (L, 1, H) for all rows; zeros by default.
            Gradients flow to one that requires them.
        offsets: in place of `resets` the cumulative lengths (D + 1,), from 0 to T, of D documents packed into a batch
            of one row. The first begins from `state` if that is given, else as the others.

    A graph built outside that `encode` or `readout` leads into is run backward once a chunk, and whatever hangs in it,
    hooks of computed tensors and kept gradients (`retain_grad`) among them, sees one chunk's unscaled part of the
    gradient at a time; where such a tensor is found with the function or module, it is refused. Hooks of leaves, and
    of `inputs`, `state` and the weight of a `LinearCrossEntropy` that is the readout, run once, on the whole gradient.

    Returns:
        The loss, 0-d, or losses of rows, (B,), in the net's dtype, and the last state, detached, float64 and exact.
        Under `torch.no_grad()` a streamed evaluation.

    Raises:
        ValueError: a bidirectional net, arguments that do not fit, an encoder that looks along time or changes with
            each call, a readout that is no sum, or a part that is wrapped or sharded by itself. In backward, losses
            of rows that are not weighed alike.
        NonFiniteError, StateRangeError, ReversalError: as in `scan`. ReversalError too where a parameter of the net, of
            encode or of readout, or one of the tensors given, is changed in place, or freed, while this runs.

    Example:
        >>> rnn, tokens = RevGRU(8, 16), torch.randint(10, (20, 3))
        >>> emb, head = torch.nn.Embedding(10, 8), LinearCrossEntropy(16, 10)
        >>> loss, state = rewind_loss(rnn, tokens[:-1], tokens[1:], encode=emb, readout=head)
        >>> loss.backward()
        >>> losses, _ = rewind_loss(rnn, tokens[:-1], tokens[1:], encode=emb, readout=head, reduction="rows")
        >>> losses.shape, bool(torch.isclose(losses.mean(), loss))
        (torch.Size([3]), True)
    """
    batch = Batch(inputs, targets, encode, readout, state, lengths, context, penalties, resets, reset_state, offsets)
    return stream_loss(Stream, rnn, batch, reduction, normalizer, checkpoint_every, max_memory)


@untraced
def stream_loss(
    kind: type[Stream], rnn: RevRNN, batch: Batch, reduction: str, normalizer: Normalizer | None,
    checkpoint_every: int | str | None, max_memory: int | str | None,
) -> tuple[Tensor, Hx]:  # fmt: skip
    """`rewind_loss` by streams of a kind."""
    batch = _checked(rnn, batch, reduction, normalizer)
    segment = segment_steps(checkpoint_every, batch.inputs.shape[0])
    weight = mean_weight(batch.readout, normalizer, _counted_targets(batch)) if reduction != "sum" else 1.0
    number_divides = reduction != "sum" and normalizer is None and total_weight(batch.readout) is None
    for tensor in batch.context:
        check_tensor("rewind_loss: each of context", tensor)
    reduced = Reduction(reduction, weight, batch.inputs.shape[1])
    stream = kind(rnn, batch, segment, checked_memory(max_memory), reduced)
    with one_sequence(), torch.autocast(batch.inputs.device.type, enabled=False):
        summed = stream.train() if torch.is_grad_enabled() else stream.evaluate()
        if number_divides:
            stream.counted.refuse(_counted_targets(batch))
        loss = reduced.of(summed, stream.penalized if batch.penalties else None).to(stream.dtype)
    if not torch.is_grad_enabled():
        return loss, stream.last_state()
    return with_gradients("rewind_loss", loss, *stream.gradients(), scale=1.0 / weight), stream.last_state()


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

    def __init__(
        self, rnn: RevRNN, batch: Batch, segment: int | None = None, max_memory: int | None = None,
        reduction: Reduction = _SUM,
    ) -> None:  # fmt: skip
        inputs, device = batch.inputs, batch.inputs.device
        weight = rnn.first_weight
        self.dtype, self.steps = weight.dtype, inputs.shape[0]
        spec = BatchSpec(inputs.shape[1], weight.dtype, weight.device)
        states, native = rnn.first_states(spec, batch.state, batched=True), rnn.runs_native(weight)
        self._resets = batch.resets_of(rnn, self.what)
        self.stack, self.layers = rnn.assemble(
            self.steps, spec, states, batch.lengths, native=native, resets=self._resets
        )
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
            penalties=self._penalties is not None, tangents=self.tangents,
        )  # fmt: skip
        self.chunk, self.segment = cuts.chunk, cuts.segment
        self._rnn, self._batch = rnn, batch
        self._surroundings = Surroundings(self.what, self.stack.tapes[0].weights.fingerprint)
        self._sinks = Sinks()
        self._encoder = self.encoder_kind(batch.encode, inputs, self._sinks, rnn.fitting, self.what)
        self._positions_read = self.readout_kind(
            batch.readout, self._sinks, device, batch.context, cuts.logit_bytes, reduction.each
        )
        self._readout = self.chunk_kind(
            self._positions_read, batch.targets, batch.lengths, self.chunk, cuts.block_bytes
        )
        self._loss = torch.zeros(spec.rows if reduction.each else (), dtype=torch.float64, device=device)
        self._last: list[TapePosition] = []
        self.stack.reuse_outputs()

    def evaluate(self) -> Tensor:
        """The summed loss, or that of each row, with no gradient and no buffer."""
        read = [*read_again(self.stack, self._batch.inputs), (f"{self.what}: targets", self._batch.targets)]
        with naming_lost(lambda: read):
            if scaled_down(self._batch.encode):
                for span in pieces(0, self.steps, self.chunk):
                    self._encoder.run(*span)  # a readout may read the embedding's weight too, of all that is looked up
            for first, last in pieces(0, self.steps, self.chunk):
                check_all_stored(read)
                self._evaluate_chunk(first, last)
        self._last = self._tape_positions()
        return self._loss

    def _evaluate_chunk(self, first: int, last: int) -> None:
        before = self._before(first)
        y = self.stack.infer(self._encoder.run(first, last), first)
        if self._penalties is not None:  # before the readout, which may write to what it is given
            self.penalized += self._penalties.losses(y, self.stack.taken_raw(), before, first)
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
            starts = self._forth()
            self._through(self._segments(), starts)
        self._rest()
        return self._loss

    @contextmanager
    def _naming_changed(self) -> Iterator[None]:
        """Within this block an error names what was changed on the way, if anything was."""
        try:
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
        last = [tape.state(position) for tape, position in zip(self.stack.tapes, self._last, strict=True)]
        stacked = tuple(torch.stack(group) for group in zip(*last, strict=True))
        return stacked[0] if len(stacked) == 1 else stacked

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
        self._loss += loss
        penalized = self._penalize(y, first, *beside)
        del y, beside  # the stack's gradient needs memory, and no outputs
        self._surroundings.watch("a tensor that readout or encode reads", self._sinks.tensors())
        self._surroundings.glance()
        self._encoder.gradient(self._down(dy, penalized, first), first)

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
            counts = tape.taken_final().counts
            if not all(torch.equal(count, counts[part]) for part, count in position.counts.items()):
                raise ReversalError(
                    f"{tape.name}: running the steps before {last} again did not lead to the state recorded there: "
                    "something computed a gate differently the second time"
                )


def _checked(rnn: RevRNN, batch: Batch, reduction: str, normalizer: Normalizer | None) -> Batch:
    """The batch, time first, if all in it fits together."""
    what = "rewind_loss"
    check_parts(what, rnn, batch.encode, batch.readout)
    check_reduction(reduction)
    if normalizer is not None and (reduction == "sum" or isinstance(normalizer, bool)):
        raise ValueError(
            'normalizer is what reduction="mean" or "rows" divides by, a number or a function of targets, '
            f"got {normalizer!r} with reduction={reduction!r}"
        )
    inputs, targets = check_tensors(what, rnn, batch.encode is None, inputs=batch.inputs, targets=batch.targets)
    if targets.requires_grad:
        raise ValueError("rewind_loss gives no gradient to targets; pass targets.detach()")
    check_lengths(batch.lengths, inputs.shape[0], inputs.shape[1], inputs.device)
    check_penalties(batch.penalties)
    return batch._replace(inputs=inputs, targets=targets)


def segment_steps(checkpoint_every: int | str | None, steps: int) -> int | None:
    """How many steps of a sequence of `steps` lie between checkpoints; None where the caller leaves it open."""
    if checkpoint_every is None:
        return None
    if checkpoint_every == "auto":
        # A kept state is 64 bits a unit, a step's buffer one: T / S states and S steps take least at S = sqrt(64 T)
        return min(steps, math.isqrt(64 * steps))
    if not is_size(checkpoint_every):
        raise ValueError(
            f'checkpoint_every must be a positive number of steps, "auto" or None, got {checkpoint_every!r}'
        )
    return min(steps, int(checkpoint_every))


def _counted_targets(batch: Batch) -> Tensor:
    """Targets (N, ...) of all positions that are no padding."""
    if batch.lengths is None:
        return batch.targets.flatten(0, 1)
    return batch.targets[running(batch.lengths, 0, batch.targets.shape[0])]
