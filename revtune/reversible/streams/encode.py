"""An encoder that rewinds: the final state of a sequence, and some units of every step for others to attend to.

Nothing per step is stored but the buffer and those units. They are the first of the top layer's h, stand on the grid of
floats instead of that of 2^-32, and need no buffer: going back, a step finds them as they were kept before it.

Shapes: T time, B batch, I input, H hidden, L layers, k units that are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible import meter as metering
from revtune.reversible.arguments import check_lengths
from revtune.reversible.kernel.environment import Environment
from revtune.reversible.layers.masks import Sequence, one_sequence
from revtune.reversible.layers.rewind import aim, check_unchanged, fingerprints, last_states, refuse_double_backward
from revtune.reversible.layers.rnn import Hx, RevRNN
from revtune.reversible.layers.stack import DEFAULT_BUDGET, chunk_steps
from revtune.reversible.streams.encoder import Encode, Encoder
from revtune.reversible.streams.gradient_sinks import Sinks
from revtune.reversible.streams.stream_checks import check_net, check_tensors
from revtune.reversible.transforms import refuse_batches


def rewind_encode(
    rnn: RevRNN,
    inputs: Tensor,
    *,
    encode: Encode | None = None,
    units: int = 0,
    state: Hx | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Hx]:
    """Encode a sequence by a recurrent net, in memory that hardly depends on the net's width; differentiable.

    A decoder starts from the state (`rewind_loss(state=)`) and attends to the annotations (`rewind_loss(context=)`).

    Args:
        rnn: a RevGRU or RevLSTM, not bidirectional, without output_dropout.
        inputs, encode, state, lengths: as in `rewind_loss`.
        units: k, how many units of the top layer's first half to keep at every step, 0..H/2.

    Returns:
        Annotations (T, B, k), or (B, T, k) if the net is batch_first; beyond its length a row repeats its last. And the
        final state, `h_n` or `(h_n, c_n)`, (L, B, H), float64 and exact.

    Raises:
        ValueError: a bidirectional net, or arguments that do not fit.
        NonFiniteError, StateRangeError, ReversalError: as in `scan`.

    Example:
        >>> rnn, emb = RevGRU(8, 16), torch.nn.Embedding(10, 8)
        >>> annotations, h_n = rewind_encode(rnn, torch.randint(10, (20, 3)), encode=emb, units=4)
        >>> annotations.shape, h_n.shape
        (torch.Size([20, 3, 4]), torch.Size([1, 3, 16]))
    """
    return _rewind_encode(rnn, inputs, encode, units, state, lengths)


@torch.compiler.disable
def _rewind_encode(
    rnn: RevRNN, inputs: Tensor, encode: Encode | None, units: int, state: Hx | None, lengths: Tensor | None
) -> tuple[Tensor, Hx]:
    what = "rewind_encode"
    check_net(what, rnn, encode)
    (inputs,) = check_tensors(what, rnn, encode is None, inputs=inputs)
    check_lengths(lengths, inputs.shape[0], inputs.shape[1], inputs.device)
    if isinstance(units, bool) or not isinstance(units, int) or not 0 <= units <= rnn.hidden_size // 2:
        raise ValueError(f"{what}: units must be from 0 to {rnn.hidden_size // 2}, half of the net, got {units!r}")
    if rnn.options.output_dropout:
        raise ValueError(f"{what} keeps units as they are, so output_dropout must be 0; drop out the annotations")
    with one_sequence(sequence := Sequence()), torch.autocast(inputs.device.type, enabled=False):
        passage = Passage(rnn, inputs, encode, units, state, lengths, sequence)
        tensors = passage.tensors() if torch.is_grad_enabled() else []
        if any(tensor.requires_grad for tensor in tensors):
            annotations, *finals = _RewindEncode.apply(passage, *tensors)
        else:
            annotations, *finals = passage.infer()
    groups = len(rnn.cell.states)
    stacked = tuple(torch.stack(finals[group::groups]) for group in range(groups))
    return annotations.transpose(0, 1) if rnn.batch_first else annotations, stacked[0] if groups == 1 else stacked


class Passage:
    """One batch of sequences on its way through encoder and stack; arguments as in `rewind_encode`."""

    def __init__(
        self,
        rnn: RevRNN,
        inputs: Tensor,
        encode: Encode | None,
        units: int,
        state: Hx | None,
        lengths: Tensor | None,
        sequence: Sequence,
    ) -> None:
        like = rnn.weight_ih_l0.new_empty(0, inputs.shape[1], rnn.input_size)
        states = tuple(one.double() for one in rnn.first_states(like, state, batched=True))
        self.inputs, self.sequence, self.sinks = inputs, sequence, Sinks()
        self.stack, self.layers = rnn.assemble(like, states, lengths, steps=inputs.shape[0], sliced=units)
        self.encoder = Encoder(encode, inputs, self.sinks, rnn.check_input)
        size = chunk_steps(inputs.shape[0], inputs.shape[1], self.stack, DEFAULT_BUDGET)
        self.spans = [(first, min(first + size, len(inputs))) for first in range(0, len(inputs), size)]
        self._reached: list[Tensor] = []

    def tensors(self) -> list[Tensor]:
        """Those that gradients flow to: the layers', and what the encoder reads for the first chunk."""
        with torch.no_grad():
            self.encoder.run(*self.spans[0], graph=True)
        self._reached = self.encoder.reached()
        self.sinks.drain()
        return [tensor for layer in self.layers for tensor in layer.flat()] + self._reached

    @torch.no_grad()
    def forward(self) -> list[Tensor]:
        """Annotations and final states, to be rewound from."""
        for first, last in self.spans:
            self.stack.forward(self.encoder.run(first, last), first)
        metering.report(self.stack.usages())
        return self._found()

    @torch.no_grad()
    def infer(self) -> list[Tensor]:
        """Annotations and final states, with no buffer."""
        for first, last in self.spans:
            self.stack.infer(self.encoder.run(first, last), first)
        return self._found()

    def _found(self) -> list[Tensor]:
        for tape in self.stack.tapes:
            tape.pause()
        top = self.stack.tapes[-1]
        annotations = top.slices[1:] if top.sliced else top.slices.new_empty(*self.inputs.shape[:2], 0)
        return [annotations, *last_states(self.layers, [tape.state() for tape in self.stack.tapes])]

    def fingerprints(self) -> list[tuple[str, int]]:
        """What must be the same in both directions."""
        inputs = self.inputs if self.inputs.is_floating_point() else self.inputs.long()
        return fingerprints(self.stack, inputs, [one for one in self._reached if one is not self.inputs])

    @torch.no_grad()
    def backward(self, dannotations: Tensor, dfinals: list[Tensor], keep: bool) -> list[Tensor | None]:
        """Rewind, and the gradients of `tensors`."""
        stack = self.stack.copy() if keep else self.stack
        top = stack.tapes[-1]
        aim(stack, dfinals)
        for first, last in reversed(self.spans):
            y = stack.rewind(self.encoder.run(first, last, graph=True), first)
            dy = torch.zeros_like(y) if top.sliced else None
            if dy is not None:
                dy[:, :, : top.sliced] = dannotations[first:last]
            self.encoder.gradient(stack.gradient(dy, first), first)
        grads = {id(tensor): grad for tensor, grad in zip(*self.sinks.drain(), strict=True)}
        found = [grad for tape, layer in zip(stack.tapes, self.layers, strict=True) for grad in layer.gradients(tape)]
        found += [grads.pop(id(tensor), None) for tensor in self._reached]
        if grads:
            raise ReversalError(
                "rewind_encode: encode reads tensors for later steps that it did not read for the first"
            )
        return found


class _RewindEncode(torch.autograd.Function):
    """A passage whose backward rewinds."""

    @staticmethod
    def forward(ctx: Any, passage: Passage, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.environment, ctx.passage = Environment.current(), passage
        ctx.fingerprints = passage.fingerprints()
        with ctx.environment.restored(passage.inputs.device):
            annotations, *finals = passage.forward()
        ctx.save_for_backward(*tensors, annotations)
        return (annotations, *finals)

    @staticmethod
    def backward(ctx: Any, dannotations: Tensor, *dfinals: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("rewind_encode")
        refuse_batches([dannotations, *dfinals])
        _ = ctx.saved_tensors
        passage, keep = ctx.passage, torch._C._autograd._get_current_graph_task_keep_graph()
        check_unchanged(ctx.fingerprints, passage.fingerprints())
        device = passage.inputs.device
        with (
            one_sequence(passage.sequence),
            torch.autocast(device.type, enabled=False),
            ctx.environment.restored(device),
        ):
            found = passage.backward(dannotations, list(dfinals), keep)
        if not keep:
            ctx.passage = None
        return (None, *found)
