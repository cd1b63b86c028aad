"""The pass of an encoder that rewinds: its way out, which keeps some units of every step, and its way back.

Shapes: T time, B batch, I input, H hidden, L layers, k units that are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible import meter as metering
from revtune.reversible.cells.cell import State
from revtune.reversible.kernel.chunks import pieces
from revtune.reversible.kernel.environment import Environment
from revtune.reversible.kernel.tape import Tape
from revtune.reversible.layers.both_ways import BothWays, assemble_both_ways
from revtune.reversible.layers.masks import BatchSpec, SequenceMasks, one_sequence
from revtune.reversible.layers.resets import Resets
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
from revtune.reversible.layers.stack import Stack
from revtune.reversible.storage import check_all_stored, naming_lost
from revtune.reversible.streams.below import Below
from revtune.reversible.streams.encoder import ChunkEncoder, Encode, Encoder
from revtune.reversible.streams.gradient_sinks import Sinks
from revtune.reversible.streams.memory_plan import plan
from revtune.reversible.streams.once import reading
from revtune.reversible.streams.parallel import refuse_shared
from revtune.reversible.streams.surroundings import scaled_down
from revtune.reversible.transforms import graph_retained, refuse_batches, refuse_double_backward


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
        spec, engine = BatchSpec(inputs.shape[1], weight.dtype, weight.device), rnn.engine_for(weight)
        # Without a first state zeros are made in float64 at once: what is only read of them takes no memory
        exact = spec if state is not None else spec._replace(dtype=torch.float64)
        states = tuple(first.double() for first in rnn.first_states(exact, state, batched=True))
        self.inputs, self.masks, self.sinks = inputs, masks, Sinks()
        self.stack: Stack | BothWays
        self.encoder: ChunkEncoder
        if rnn.bidirectional:
            self.stack, self.layers = assemble_both_ways(
                rnn, steps, spec, states, lengths, engine=engine, sliced=units, resets=resets
            )
        else:
            self.stack, self.layers = rnn.assemble(
                steps, spec, states, lengths, engine=engine, sliced=units, resets=resets
            )
        if isinstance(self.stack, BothWays) and rnn.num_layers > 1:
            self.encoder = Below(
                rnn, encode, inputs, states, lengths, resets, self.sinks, engine=engine, dropout=self.stack.below
            )
        else:
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
        for way, first, last in self._passages():
            check_all_stored(read)
            x = self.encoder.run(first, last)
            check_all_stored(read)
            way.forward(x, first)
        metering.report(self.stack.usages())
        return self._results()

    @torch.no_grad()
    def infer(self) -> list[Tensor]:
        """Annotations and final states, without a buffer."""
        read = list(self.read_again())
        with naming_lost(lambda: read):
            for way, first, last in self._passages():
                check_all_stored(read)
                way.infer(self.encoder.run(first, last), first)
        return self._results()

    def _passages(self) -> Iterator[tuple[Stack, int, int]]:
        """The chunks that each direction passes, one after another: its stack, and from where to where they go."""
        return ((way, *span) for way in self.stack.ways for span in way.in_order(self.spans))

    def _results(self) -> list[Tensor]:
        for tape in self.stack.tapes:
            tape.pause()  # until backward, before which a decoder runs
        kept = [way.turned(self._kept(way.tapes[-1])) for way in self.stack.ways]
        annotations = kept[0] if len(kept) == 1 else torch.cat(kept, -1)
        return [annotations, *last_states(self.layers, [tape.state() for tape in self.stack.tapes])]

    def _kept(self, top: Tape) -> Tensor:
        """The units of each step that one direction's top layer keeps, (T, B, k)."""
        return top.slices[1:] if top.sliced else top.slices.new_empty(*self.inputs.shape[:2], 0)

    def whole_state(self, finals: Sequence[Tensor]) -> State:
        """The final states of the net, (L, B, H) each, from those of the layers that rewind, (B, H) each."""
        each = len(self.stack.tapes[0].cell.states)
        states = tuple(torch.stack(tuple(finals[number::each])) for number in range(each))
        return self.encoder.whole_state(states) if isinstance(self.encoder, Below) else states

    def fingerprints(self) -> Fingerprints:
        """Fingerprints of all that both directions must read alike."""
        return fingerprints(self.stack, self.inputs, self._encoder_tensors())

    def settled(self, before: Fingerprints) -> Fingerprints:
        """Fingerprints from before `forward`, but those of weights that an embedding has scaled down in it."""
        fingerprints, read = self.stack.tapes[0].weights.fingerprints, self.read_again()
        return [
            (what, fingerprints([tensor])[0] if id(tensor) in self._scaled_down else number)
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
        aim(stack, dfinals)
        kept = [None] * len(stack.ways) if dannotations is None else dannotations.chunk(len(stack.ways), -1)
        for way, own in zip(stack.ways, kept, strict=True):
            self._rewind(way, own)
        grads = {id(tensor): grad for tensor, grad in zip(*self.sinks.drain(), strict=True)}
        layers = [grad for tape, layer in zip(stack.tapes, self.layers, strict=True) for grad in layer.gradients(tape)]
        encoder = [grads.pop(id(tensor), None) for tensor in self._reached]
        if grads:
            raise ReversalError(
                "rewind_encode: encode reads tensors for later steps that it did not read for the first"
            )
        return layers + encoder

    def _rewind(self, way: Stack, dkept: Tensor | None) -> None:
        """Rewind one direction, from the gradient of the units that it keeps, (T, B, k), or None for zero."""
        sliced, read = way.tapes[-1].sliced, list(self.read_again())
        for first, last in reversed(way.in_order(self.spans)):
            check_all_stored(read)
            x = self.encoder.run(first, last, graph=True)
            check_all_stored(read)
            y = way.rewind(x, first)
            dy = torch.zeros_like(y) if sliced else None
            if dy is not None and dkept is not None:
                dy[:, :, :sliced] = dkept[first:last]
            self.encoder.gradient(way.gradient(dy, first, wanted=self.encoder.learns), first)


class RewindEncode(torch.autograd.Function):
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
            reading(encode_pass.inputs),
            torch.autocast(device.type, enabled=False),
            ctx.environment.restored(device),
        ):
            try:
                with encode_pass.encoder.answering():
                    grads = encode_pass.backward(dannotations, dfinals, keep)
            finally:  # a change is the reason for other errors too
                check_unchanged(ctx.fingerprints, encode_pass.fingerprints(), "while rewind_encode went back")
        if not keep:
            ctx.encode_pass = None
        return (None, *grads)
