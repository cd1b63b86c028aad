"""An encoder that rewinds: the final state of a sequence, and some units of every step for a decoder to attend to.

Nothing per step is stored but the buffer and those units. They are the first of the top layer's h, have float values
instead of multiples of 2^-32, and need no buffer: a step that is undone finds their earlier values among those kept.

Shapes: T time, B batch, I input, H hidden, L layers, k units that are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible import meter as metering
from revtune.reversible.arguments import check_lengths
from revtune.reversible.kernel.chunks import pieces
from revtune.reversible.kernel.environment import Environment
from revtune.reversible.kernel.untraced import untraced
from revtune.reversible.layers.masks import BatchSpec, SequenceMasks, one_sequence
from revtune.reversible.layers.resets import GivenResets, Resets
from revtune.reversible.layers.rewind import (
    Fingerprints,
    aim,
    check_unchanged,
    fingerprints,
    last_states,
    read_again,
)
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.layers.rnn_arguments import Hx
from revtune.reversible.storage import check_all_stored, naming_lost
from revtune.reversible.streams.encoder import Encode, Encoder
from revtune.reversible.streams.gradient_sinks import Sinks
from revtune.reversible.streams.hooks import make_weights
from revtune.reversible.streams.memory import refuse_cached
from revtune.reversible.streams.memory_plan import checked_memory, plan
from revtune.reversible.streams.parallel import refuse_shared, refuse_wrapped
from revtune.reversible.streams.stream_checks import check_net, check_tensors
from revtune.reversible.streams.surroundings import scaled_down
from revtune.reversible.transforms import graph_retained, refuse_batches, refuse_double_backward


def rewind_encode(
    rnn: RevRNN,
    inputs: Tensor,
    *,
    encode: Encode | None = None,
    units: int = 0,
    state: Hx | None = None,
    lengths: Tensor | None = None,
    max_memory: int | str | None = None,
    resets: Tensor | None = None,
    reset_state: Hx | None = None,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Hx]:
    """Encode a sequence by a recurrent net, in memory that hardly depends on the net's width; differentiable.

    A decoder starts from the state (`rewind_loss(state=)`) and attends to the annotations (`rewind_loss(context=)`).

    Args:
        rnn: a RevGRU or RevLSTM, not bidirectional, without output_dropout.
        inputs, encode, state, lengths: as in `rewind_loss`.
        units: k, how many units of the top layer's first half to keep at every step, 0..H/2.
        max_memory: as in `rewind_loss`, annotations left out; nothing but chunks can be cut shorter here.
        resets, reset_state, offsets: as in `rewind_loss`.

    Returns:
        Annotations (T, B, k), or (B, T, k) if the net is batch_first; beyond its length a row repeats its last. And the
        final state, `h_n` or `(h_n, c_n)`, (L, B, H), float64 and exact.

    Raises:
        ValueError: a bidirectional net, or arguments that do not fit. Of a net that tunes itself: a tuned
            output_dropout, rows that are not the examples in their order, or Delta-STN, which does not follow them into
            a decoder.
        NonFiniteError, StateRangeError, ReversalError: as in `scan`.

    Example:
        >>> rnn, emb = RevGRU(8, 16), torch.nn.Embedding(10, 8)
        >>> annotations, h_n = rewind_encode(rnn, torch.randint(10, (20, 3)), encode=emb, units=4)
        >>> annotations.shape, h_n.shape
        (torch.Size([20, 3, 4]), torch.Size([1, 3, 16]))
    """
    given = GivenResets(resets, reset_state, offsets)
    return _rewind_encode(rnn, inputs, encode, units, state, lengths, checked_memory(max_memory), given)


@untraced
def _rewind_encode(
    rnn: RevRNN, inputs: Tensor, encode: Encode | None, units: int, state: Hx | None, lengths: Tensor | None,
    max_memory: int | None, given: GivenResets,
) -> tuple[Tensor, Hx]:  # fmt: skip
    what = "rewind_encode"
    check_net(what, rnn, encode)
    make_weights(rnn)
    refuse_wrapped(what, encode=encode)
    refuse_cached(what, encode=encode)
    as_given = inputs
    (inputs,) = check_tensors(what, rnn, encode is None, inputs=inputs)
    check_lengths(lengths, inputs.shape[0], inputs.shape[1], inputs.device)
    if isinstance(units, bool) or not isinstance(units, int) or not 0 <= units <= rnn.hidden_size // 2:
        raise ValueError(f"{what}: units must be from 0 to {rnn.hidden_size // 2}, half of the net, got {units!r}")
    if rnn.options.output_dropout:
        raise ValueError(f"{what} keeps units as they are, so output_dropout must be 0; drop out the annotations")
    resets = rnn.resets(inputs, given, lengths, carried=state is not None, what=what)

    def run() -> tuple[Tensor, Hx]:
        return _encoded(rnn, inputs, encode, units, state, lengths, max_memory, resets)

    return rnn.encoding(what, as_given, run)


def _encoded(
    rnn: RevRNN, inputs: Tensor, encode: Encode | None, units: int, state: Hx | None, lengths: Tensor | None,
    max_memory: int | None, resets: Resets | None,
) -> tuple[Tensor, Hx]:  # fmt: skip
    """Annotations and the final state of time-first inputs; arguments as in `rewind_encode`."""
    with one_sequence(masks := SequenceMasks()), torch.autocast(inputs.device.type, enabled=False):
        encode_pass = EncodePass(rnn, inputs, encode, units, state, lengths, masks, max_memory, resets)
        tensors = encode_pass.tensors() if torch.is_grad_enabled() else []
        if any(tensor.requires_grad for tensor in tensors):
            encode_pass.refuse_shared()
            annotations, *finals = _RewindEncode.apply(encode_pass, *tensors)
        else:
            annotations, *finals = encode_pass.infer()
    states = len(rnn.cell.states)
    stacked = tuple(torch.stack(finals[number::states]) for number in range(states))
    return annotations.transpose(0, 1) if rnn.batch_first else annotations, stacked[0] if states == 1 else stacked


class EncodePass:
    """One batch of sequences on its way through encoder and stack; arguments as in `rewind_encode`.

    `masks` are the sequence's locked masks, which the way back uses again.
    """

    def __init__(
        self,
        rnn: RevRNN,
        inputs: Tensor,
        encode: Encode | None,
        units: int,
        state: Hx | None,
        lengths: Tensor | None,
        masks: SequenceMasks,
        max_memory: int | None = None,
        resets: Resets | None = None,
    ) -> None:
        weight, steps = rnn.first_weight, inputs.shape[0]
        spec, native = BatchSpec(inputs.shape[1], weight.dtype, weight.device), rnn.runs_native(weight)
        # Without a first state zeros are made in float64 at once: what is only read of them takes no memory
        exact = spec if state is not None else spec._replace(dtype=torch.float64)
        states = tuple(first.double() for first in rnn.first_states(exact, state, batched=True))
        self.inputs, self.masks, self.sinks = inputs, masks, Sinks()
        self.stack, self.layers = rnn.assemble(steps, spec, states, lengths, native=native, sliced=units, resets=resets)
        self.encoder = Encoder(encode, inputs, self.sinks, rnn.fitting, "rewind_encode")
        cuts = plan(
            "rewind_encode", self.stack, steps, segment=None, max_memory=max_memory, readout=False, checkpoints=False
        )
        self.spans = list(pieces(0, steps, cuts.chunk))
        self.stack.reuse_outputs()
        self._reached: list[Tensor] = []
        self._scaled_down = scaled_down(encode)

    def tensors(self) -> list[Tensor]:
        """The tensors that gradients flow to: the layers', and what the encoder reads for the first chunk."""
        with torch.no_grad():
            self.encoder.run(*self.spans[0], graph=True)
        self._reached = self.encoder.reached()
        self.sinks.drain()  # accumulators that the first chunk opened; the way back opens its own
        return [tensor for layer in self.layers for tensor in layer.flat()] + self._reached

    def refuse_shared(self) -> None:
        """Refuse weights that other processes may change before the way back."""
        for tape in self.stack.tapes:
            for name, weight in tape.weights.named():
                refuse_shared("rewind_encode", f"{tape.name}, weight {name!r}", weight)
        for tensor in self._encoder_tensors():
            refuse_shared("rewind_encode", "a tensor that encode reads", tensor)

    @torch.no_grad()
    def forward(self) -> list[Tensor]:
        """Annotations and final states, from which `backward` rewinds."""
        read = list(self.read_again())
        for first, last in self.spans:
            check_all_stored(read)
            x = self.encoder.run(first, last)
            check_all_stored(read)
            self.stack.forward(x, first)
        metering.report(self.stack.usages())
        return self._results()

    @torch.no_grad()
    def infer(self) -> list[Tensor]:
        """Annotations and final states, without a buffer."""
        read = list(self.read_again())
        with naming_lost(lambda: read):
            for first, last in self.spans:
                check_all_stored(read)
                self.stack.infer(self.encoder.run(first, last), first)
        return self._results()

    def _results(self) -> list[Tensor]:
        for tape in self.stack.tapes:
            tape.pause()  # until backward, before which a decoder runs
        top = self.stack.tapes[-1]
        annotations = top.slices[1:] if top.sliced else top.slices.new_empty(*self.inputs.shape[:2], 0)
        return [annotations, *last_states(self.layers, [tape.state() for tape in self.stack.tapes])]

    def fingerprints(self) -> Fingerprints:
        """Fingerprints of all that both directions must read alike."""
        return fingerprints(self.stack, self.inputs, self._encoder_tensors())

    def settled(self, before: Fingerprints) -> Fingerprints:
        """Fingerprints from before `forward`, but those of weights that an embedding has scaled down in it."""
        fingerprint, read = self.stack.tapes[0].weights.fingerprint, self.read_again()
        return [
            (what, fingerprint(tensor) if id(tensor) in self._scaled_down else number)
            for (what, number), (_, tensor) in zip(before, read, strict=True)
        ]

    def read_again(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that both directions read, each after what errors call it."""
        return read_again(self.stack, self.inputs, self._encoder_tensors())

    def _encoder_tensors(self) -> list[Tensor]:
        return [tensor for tensor in self._reached if tensor is not self.inputs]

    @torch.no_grad()
    def backward(
        self, dannotations: Tensor | None, dfinals: Sequence[Tensor | None], keep: bool
    ) -> list[Tensor | None]:
        """Rewind. Returns the gradients of `tensors`; `keep` says that it will be asked again."""
        stack = self.stack.copy() if keep else self.stack
        top = stack.tapes[-1]
        aim(stack, dfinals)
        read = list(self.read_again())
        for first, last in reversed(self.spans):
            check_all_stored(read)
            with self.encoder.answering():
                x = self.encoder.run(first, last, graph=True)
                check_all_stored(read)
                y = stack.rewind(x, first)
            dy = torch.zeros_like(y) if top.sliced else None
            if dy is not None and dannotations is not None:
                dy[:, :, : top.sliced] = dannotations[first:last]
            self.encoder.gradient(stack.gradient(dy, first, wanted=self.encoder.learns), first)
        grads = {id(tensor): grad for tensor, grad in zip(*self.sinks.drain(), strict=True)}
        layers = [grad for tape, layer in zip(stack.tapes, self.layers, strict=True) for grad in layer.gradients(tape)]
        encoder = [grads.pop(id(tensor), None) for tensor in self._reached]
        if grads:
            raise ReversalError(
                "rewind_encode: encode reads tensors for later steps that it did not read for the first"
            )
        return layers + encoder


class _RewindEncode(torch.autograd.Function):
    """An `EncodePass` whose backward rewinds."""

    @staticmethod
    def forward(ctx: Any, encode_pass: EncodePass, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.environment, ctx.encode_pass = Environment.current(), encode_pass
        ctx.set_materialize_grads(False)  # zeros for what nothing was computed from
        before = encode_pass.fingerprints()
        with ctx.environment.restored(encode_pass.inputs.device), naming_lost(encode_pass.read_again):
            annotations, *finals = encode_pass.forward()
        ctx.fingerprints = encode_pass.settled(before)
        ctx.save_for_backward(*tensors, annotations)
        return (annotations, *finals)

    @staticmethod
    def backward(ctx: Any, dannotations: Tensor | None, *dfinals: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward("rewind_encode")
        refuse_batches([dannotations, *dfinals])
        _ = ctx.saved_tensors  # autograd compares versions here: a tensor changed in place since then raises
        encode_pass, keep = ctx.encode_pass, graph_retained()
        check_unchanged(ctx.fingerprints, encode_pass.fingerprints())
        device = encode_pass.inputs.device
        with (
            one_sequence(encode_pass.masks),
            torch.autocast(device.type, enabled=False),
            ctx.environment.restored(device),
        ):
            try:
                grads = encode_pass.backward(dannotations, dfinals, keep)
            finally:  # a change is the reason for other errors too
                check_unchanged(ctx.fingerprints, encode_pass.fingerprints(), "while rewind_encode went back")
        if not keep:
            ctx.encode_pass = None
        return (None, *grads)
