"""Whole training steps, chunk by chunk: encoder, recurrent stack, readout and loss, with one readout pass.

A layer that returns all its outputs has stored every state in them. Here nothing per step is returned: the sequence
runs forward through encoder and stack only; then it is rewound at once, and each chunk's readout, loss and gradients
are computed on the way. `loss.backward()` only scales those gradients and hands them to autograd, so that optimizers,
clipping and hooks work as ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible import meter as metering
from revtune.reversible.arguments import check_lengths, check_tensor, is_size, running
from revtune.reversible.cells.cell import State
from revtune.reversible.kernel.tape import TapePosition
from revtune.reversible.layers.masks import one_sequence
from revtune.reversible.layers.rewind import refuse_double_backward
from revtune.reversible.layers.rnn import Hx, RevRNN
from revtune.reversible.layers.stack import DEFAULT_BUDGET, chunk_steps
from revtune.reversible.streams.encoder import Encode, Encoder
from revtune.reversible.streams.gradient_sinks import Sinks
from revtune.reversible.streams.readout_pass import Readout, ReadoutPass
from revtune.reversible.streams.stream_checks import check_net, check_tensors
from revtune.reversible.transforms import refuse_batches

Move = Callable[[Tensor, int], Tensor]


def rewind_loss(
    rnn: RevRNN,
    inputs: Tensor,
    targets: Tensor,
    *,
    encode: Encode | None = None,
    readout: Readout,
    state: Hx | None = None,
    lengths: Tensor | None = None,
    context: Sequence[Tensor] = (),
    reduction: Literal["mean", "sum"] = "mean",
    checkpoint_every: int | Literal["auto"] | None = None,
) -> tuple[Tensor, Hx]:
    """The loss of a recurrent net over a sequence, in memory that hardly depends on its length.

    Args:
        rnn: a RevGRU or RevLSTM, not bidirectional.
        inputs: (T, B, ...), or (B, T, ...) if the net is batch_first.
        targets: likewise; what `readout` expects.
        encode: maps a time-first chunk of inputs to (K, B, I): an embedding, any module, any function. None if inputs
            are features. A chunk is encoded two or three times, with the same random draws, which torch's own generator
            has no part in (one compiled by torch.compile runs uncompiled for that); a module that counts its calls,
            such as BatchNorm with running statistics, counts them all.
        readout: `readout(y, targets)` with y (N, H) gives the *summed* loss of its N positions. Gradients reach every
            tensor that it uses but the targets. `LinearCrossEntropy` is the fast one. Padded positions are left out.
        state: `h_0`, or `(h_0, c_0)`, (L, B, H); pass on what the previous call returned for truncated
            backpropagation. Zeros by default. Gradients flow to one that requires them.
        lengths: steps of each row, (B,), in 1..T. Padded inputs must still be finite numbers or valid ids.
        context: tensors that the readout takes besides, `readout(y, targets, *context)`, such as annotations of another
            sequence (`rewind_encode`); their gradients are added up over chunks and reach them once.
        reduction: "mean" divides by the number of positions (or by `readout.total_weight(targets)`), "sum" does not.
        checkpoint_every: keep the state every so many steps and the buffer of one such segment only, for one more
            forward pass; "auto" takes sqrt(64 T) steps, which stores least at one forgotten bit a step.

    A graph built outside that `encode` or `readout` leads into is run backward once a chunk, and whatever hangs in it,
    hooks of computed tensors and kept gradients (`retain_grad`) among them, sees one chunk's unscaled part of the
    gradient at a time; where such a tensor is found with the function or module, it is refused. Hooks of leaves, and
    of `inputs`, `state` and the weight of a `LinearCrossEntropy` that is the readout, run once, on the whole gradient.

    Returns:
        The loss, 0-d in the net's dtype, and the last state, detached, float64 and exact. Under `torch.no_grad()` a
        streamed evaluation.

    Raises:
        ValueError: a bidirectional net, or arguments that do not fit.
        NonFiniteError, StateRangeError, ReversalError: as in `scan`.

    Example:
        >>> rnn, tokens = RevGRU(8, 16), torch.randint(10, (20, 3))
        >>> emb, head = torch.nn.Embedding(10, 8), LinearCrossEntropy(16, 10)
        >>> loss, state = rewind_loss(rnn, tokens[:-1], tokens[1:], encode=emb, readout=head)
        >>> loss.backward()
    """
    return _rewind_loss(rnn, inputs, targets, encode, readout, state, lengths, context, reduction, checkpoint_every)


@torch.compiler.disable
def _rewind_loss(
    rnn: RevRNN,
    inputs: Tensor,
    targets: Tensor,
    encode: Encode | None,
    readout: Readout,
    state: Hx | None,
    lengths: Tensor | None,
    context: Sequence[Tensor],
    reduction: str,
    checkpoint_every: int | str | None,
) -> tuple[Tensor, Hx]:
    inputs, targets = _checked(rnn, inputs, targets, encode, reduction)
    check_lengths(lengths, inputs.shape[0], inputs.shape[1], inputs.device)
    segment = segment_steps(checkpoint_every, inputs.shape[0])
    weight = _weight(readout, targets, lengths) if reduction == "mean" else 1.0
    for one in context:
        check_tensor("rewind_loss: each of context", one)
    stream = Stream(rnn, inputs, targets, encode, readout, state, lengths, segment, context)
    with one_sequence(), torch.autocast(inputs.device.type, enabled=False):
        if not torch.is_grad_enabled():
            return (stream.evaluate() / weight).to(stream.dtype), stream.last_state()
        loss = (stream.train() / weight).to(stream.dtype)
    tensors, grads = stream.gradients()
    handed: Tensor = _HandOver.apply(loss, grads, 1.0 / weight, *tensors)
    return handed, stream.last_state()


class Stream:
    """One batch of sequences on its way through encoder, stack and readout; arguments as in `rewind_loss`."""

    def __init__(
        self,
        rnn: RevRNN,
        inputs: Tensor,
        targets: Tensor,
        encode: Encode | None,
        readout: Readout,
        state: Hx | None,
        lengths: Tensor | None,
        segment: int,
        context: Sequence[Tensor] = (),
    ) -> None:
        like = rnn.weight_ih_l0.new_empty(0, inputs.shape[1], rnn.input_size)
        states = rnn.first_states(like, state, batched=True)
        self.dtype, self.steps, self.segment = like.dtype, inputs.shape[0], segment
        self.stack, self.layers = rnn.assemble(like, states, lengths, steps=inputs.shape[0])
        self.chunk = chunk_steps(segment, inputs.shape[1], self.stack, DEFAULT_BUDGET)
        self._targets, self._lengths = targets, lengths
        self._sinks = Sinks()
        self._encoder = Encoder(encode, inputs, self._sinks, rnn.check_input)
        self._readout = ReadoutPass(readout, self._sinks, inputs.device, context)
        self._loss = torch.zeros((), dtype=torch.float64, device=inputs.device)
        self._last: list[State] = []

    def evaluate(self) -> Tensor:
        """The summed loss, with no gradient and no buffer."""
        for first, last in _spans(0, self.steps, self.chunk):
            y = self.stack.infer(self._encoder.run(first, last), first)
            positions, targets = self._positions(y, first, last)
            if len(positions):
                self._loss += self._readout.loss(positions, targets)
        self._last = [tape.state() for tape in self.stack.tapes]
        return self._loss

    @torch.no_grad()
    def train(self) -> Tensor:
        """The summed loss; its gradients are then in `gradients`."""
        segments = list(_spans(0, self.steps, self.segment))
        starts = [self._standing()]
        for first, last in segments[:-1]:
            for span in _spans(first, last, self.chunk):
                self.stack.preview(self._encoder.run(*span), span[0])
            starts.append(self._standing())
        ends = [*starts[1:], None]
        for (first, last), start, end in reversed(list(zip(segments, starts, ends, strict=True))):
            self._restart(start)
            self._run_segment(first, last, end)
        return self._loss

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors that want a gradient, and their gradients, which are given away."""
        tensors, grads = self._sinks.drain()
        for tape, layer in zip(self.stack.tapes, self.layers, strict=True):
            for tensor, grad in zip(layer.flat(), layer.gradients(tape), strict=True):
                if grad is not None and tensor.requires_grad:
                    tensors.append(tensor)
                    grads.append(grad)
        return tensors, grads

    def last_state(self) -> Hx:
        """The state after the last step, (L, B, H) each, float64."""
        stacked = tuple(torch.stack(group) for group in zip(*self._last, strict=True))
        return stacked[0] if len(stacked) == 1 else stacked

    def _run_segment(self, first: int, last: int, end: list[TapePosition] | None) -> None:
        """Run a segment forward, turn around at its last chunk, and rewind it with readout and gradients."""
        spans = list(_spans(first, last, self.chunk))
        for span in spans[:-1]:
            self.stack.forward(self._encoder.run(*span), span[0])
        self._pass(self.stack.record, *spans[-1], lambda: self._arrived(end, last))
        for span in reversed(spans[:-1]):
            self._pass(self.stack.rewind, *span)

    def _arrived(self, end: list[TapePosition] | None, last: int) -> None:
        """Note or check where the segment ends."""
        if end is None:
            self._last = [tape.state(tape.final) for tape in self.stack.tapes]
        else:
            self._compare(end, last)
        metering.report(self.stack.usages())

    def _pass(self, move: Move, first: int, last: int, then: Callable[[], None] | None = None) -> None:
        """Record or rewind a chunk, then its readout, loss and gradients."""
        y = move(self._encoder.run(first, last, graph=True), first)
        if then:
            then()
        dy = self._read_out(y, first, last)
        del y
        self._encoder.gradient(self.stack.gradient(dy, first), first)

    def _read_out(self, y: Tensor, first: int, last: int) -> Tensor | None:
        """Add the chunk's loss; returns the gradient of its outputs (K, B, H), None where no row runs any more."""
        positions, targets = self._positions(y, first, last)
        if not len(positions):
            return None
        loss, grad = self._readout.gradient(positions, targets)
        self._loss += loss
        return self._placed(grad, y, first, last)

    def _positions(self, y: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Outputs (N, H) and targets (N, ...) of the chunk's positions, padding left out."""
        live, targets = self._live(first, last), self._targets[first:last]
        return (y.flatten(0, 1), targets.flatten(0, 1)) if live is None else (y[live], targets[live])

    def _placed(self, grad: Tensor, y: Tensor, first: int, last: int) -> Tensor:
        """A gradient by position as one by step and row, zero at padding."""
        live = self._live(first, last)
        if live is None:
            return grad.view(y.shape)
        placed = torch.zeros_like(y)
        placed[live] = grad
        return placed

    def _live(self, first: int, last: int) -> Tensor | None:
        if self._lengths is None:
            return None
        return running(self._lengths, first, last)

    def _standing(self) -> list[TapePosition]:
        return [tape.position() for tape in self.stack.tapes]

    def _restart(self, starts: list[TapePosition]) -> None:
        for tape, start in zip(self.stack.tapes, starts, strict=True):
            tape.restart(start)

    def _compare(self, wanted: list[TapePosition], step: int) -> None:
        """A segment that runs again must end where it ended the first time."""
        for tape, ends in zip(self.stack.tapes, wanted, strict=True):
            again = tape.final.counts
            if not all(torch.equal(count, again[part]) for part, count in ends.counts.items()):
                raise ReversalError(
                    f"{tape.name}: running the steps before {step} again did not lead to the state recorded there: "
                    "something computed a gate differently the second time"
                )


class _HandOver(torch.autograd.Function):
    """A loss whose gradients are known: backward scales them and gives them away."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, grads: list[Tensor], scale: float, *tensors: Tensor) -> Tensor:
        ctx.grads, ctx.scale = grads, scale
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("rewind_loss")
        refuse_batches([grad])
        if ctx.grads is None:
            raise RuntimeError(
                "rewind_loss: backward a second time; the first call needs retain_graph=True to allow it"
            )
        factor, grads = float(grad) * ctx.scale, ctx.grads
        if torch._C._autograd._get_current_graph_task_keep_graph():
            return (None, None, None, *(kept * factor for kept in grads))
        ctx.grads = None
        return (None, None, None, *(given.mul_(factor) for given in grads))


def _checked(
    rnn: RevRNN, inputs: Tensor, targets: Tensor, encode: Encode | None, reduction: str
) -> tuple[Tensor, Tensor]:
    """Time-first inputs and targets that fit together."""
    what = "rewind_loss"
    check_net(what, rnn, encode)
    if rnn.options.output != "all":
        raise ValueError('rewind_loss reads out every step; for one target a sequence call the net with output="last"')
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}')
    inputs, targets = check_tensors(what, rnn, encode is None, inputs=inputs, targets=targets)
    if targets.requires_grad:
        raise ValueError("rewind_loss gives no gradient to targets; pass targets.detach()")
    return inputs, targets


def segment_steps(checkpoint_every: int | str | None, steps: int) -> int:
    """How many steps of a sequence of `steps` lie between checkpoints; all of them for None."""
    if checkpoint_every is None:
        return steps
    if checkpoint_every == "auto":
        return min(steps, math.isqrt(64 * steps))
    if not is_size(checkpoint_every):
        raise ValueError(
            f'checkpoint_every must be a positive number of steps, "auto" or None, got {checkpoint_every!r}'
        )
    return min(steps, int(checkpoint_every))


def _weight(readout: Readout, targets: Tensor, lengths: Tensor | None) -> float:
    """What a mean divides by."""
    if lengths is not None:
        targets = targets[running(lengths, 0, targets.shape[0])]
    else:
        targets = targets.flatten(0, 1)
    total = getattr(readout, "total_weight", None)
    weight = float(targets.shape[0]) if total is None else float(total(targets))
    if not weight > 0:
        raise ValueError(
            "rewind_loss: no target counts, so there is no mean loss; use reduction='sum' or leave the batch out"
        )
    return weight


def _spans(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive spans of `size` steps, the last one what remains."""
    return ((start, min(start + size, last)) for start in range(first, last, size))
