"""The outputs of all steps of a streamed net's heads, for losses over whole sequences.

`rewind_loss` takes sums over positions, whose gradients are known chunk by chunk. CTC, a linear-chain CRF, advantages
along an episode or an alignment want all outputs at once. So these are kept, which are small, and nothing else of a
step but the buffer; whatever is computed from them goes backward by rewinding, the heads run once more a chunk.

Shapes: T time, K steps of a chunk, B batch, I input, H hidden, L layers, N positions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible import meter as metering
from revtune.reversible.arguments import check_lengths
from revtune.reversible.kernel.chunks import pieces
from revtune.reversible.kernel.environment import Environment
from revtune.reversible.kernel.untraced import untraced
from revtune.reversible.layers.masks import SequenceMasks, one_sequence
from revtune.reversible.layers.rewind import aim
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.layers.rnn_arguments import Hx
from revtune.reversible.streams.encoder import Encode
from revtune.reversible.streams.head_and_loss import Readout
from revtune.reversible.streams.heads import ChunkHeads, HeadFunction, HeadPass
from revtune.reversible.streams.memory_plan import checked_memory
from revtune.reversible.streams.readout import FeatureReadout, LinearCrossEntropy
from revtune.reversible.streams.stream import Batch, Stream, segment_steps
from revtune.reversible.streams.stream_checks import check_parts, check_tensors
from revtune.reversible.transforms import graph_retained, refuse_batches, refuse_double_backward

_AFTERWARDS = "between rewind_outputs and the end of its backward (by an optimizer's step, or through .data?)"


def rewind_outputs(
    rnn: RevRNN,
    inputs: Tensor,
    *,
    encode: Encode | None = None,
    readout: HeadFunction,
    state: Hx | None = None,
    lengths: Tensor | None = None,
    checkpoint_every: int | Literal["auto"] | None = None,
    max_memory: int | str | None = None,
    resets: Tensor | None = None,
    reset_state: Hx | None = None,
    offsets: Tensor | None = None,
) -> tuple[Any, Hx]:
    """A head's outputs of all steps of a recurrent net, for a loss over whole sequences; differentiable.

    Any loss of them (CTC, a linear-chain CRF, PPO, an alignment) goes backward by rewinding. Outputs are kept as they
    are, so they should be small, as scores of characters or tags and values of states are; of the net's own outputs
    (T, B, H) no more than a chunk exists at a time. A loss that is a sum over positions takes less by `rewind_loss`.

    Args:
        rnn: a RevGRU or RevLSTM, not bidirectional.
        inputs, encode, state, lengths: as in `rewind_loss`.
        readout: the head: a module or function that maps y (N, H), positions as in `rewind_loss`, to (N, ...), each
            position by itself; or several heads, whose tensors it returns in a tuple, list or dict. Gradients reach
            every tensor that it uses. It runs once forward and once on the way back, with the same random draws. Of a
            `LinearCrossEntropy` give its `logits`.
        checkpoint_every: as in `rewind_loss`.
        max_memory: as in `rewind_loss`, outputs left out.
        resets, reset_state, offsets: as in `rewind_loss`.

    Returns:
        Outputs (T, B, ...), or (B, T, ...) if the net is batch_first, as the readout gives them: a tensor, or a tuple,
        list or dict; zero and without gradient at padding. And the last state, `h_n` or `(h_n, c_n)`, (L, B, H),
        float64 and exact, in the graph too: detach it where only its numbers are passed on. Under `torch.no_grad()` a
        streamed evaluation.

    Raises:
        ValueError: a bidirectional net, arguments that do not fit, an encoder or readout that looks along time or
            changes with each call, a readout of other shapes than these, or a part that is wrapped or sharded by
            itself.
        NonFiniteError, StateRangeError, ReversalError: as in `scan`. ReversalError in backward too where a parameter of
            the net, of encode or of readout, one of the tensors given, or outputs were changed in place since.

    Example:
        >>> rnn, head = RevGRU(8, 16), torch.nn.Linear(16, 5)
        >>> outputs, state = rewind_outputs(rnn, torch.randn(50, 3, 8), readout=head)
        >>> outputs.shape, state.shape
        (torch.Size([50, 3, 5]), torch.Size([1, 3, 16]))
        >>> targets, steps, letters = torch.randint(1, 5, (3, 9)), torch.full((3,), 50), torch.full((3,), 9)
        >>> loss = torch.nn.CTCLoss()(outputs.log_softmax(-1), targets, steps, letters)
        >>> loss.backward()
    """
    batch = Batch(
        inputs, inputs, encode, readout, state, lengths, resets=resets, reset_state=reset_state, offsets=offsets
    )
    return _rewind_outputs(rnn, batch, checkpoint_every, max_memory)


@untraced
def _rewind_outputs(
    rnn: RevRNN, batch: Batch, checkpoint_every: int | str | None, max_memory: int | str | None
) -> tuple[Any, Hx]:
    batch = _checked(rnn, batch)
    stream = OutputStream(rnn, batch, segment_steps(checkpoint_every, len(batch.inputs)), checked_memory(max_memory))
    with one_sequence(masks := SequenceMasks()), torch.autocast(batch.inputs.device.type, enabled=False):
        if torch.is_grad_enabled():
            stream.run(masks)
            given = _RewindOutputs.apply(stream, *stream.tensors())
        else:
            stream.evaluate()
            given = stream.results()
    states = len(rnn.cell.states)
    heads, last = given[:-states], given[-states:]
    if rnn.batch_first:
        heads = [head.transpose(0, 1) for head in heads]
    return stream.layout.whole(heads), last[0] if states == 1 else tuple(last)


class OutputStream(Stream):
    """One batch of sequences whose outputs are kept, and whose gradients come later."""

    what = "rewind_outputs"
    readout_kind = HeadPass
    chunk_kind = ChunkHeads
    _positions_read: HeadPass
    _readout: ChunkHeads

    def run(self, masks: SequenceMasks) -> None:
        """Run forward, keeping outputs, the last segment's buffer, and where each segment starts.

        Args:
            masks: the sequence's locked masks, which the way back uses again.
        """
        self._masks, self._environment = masks, Environment.current()
        self._watch()
        with torch.no_grad(), self._naming_changed():
            self._encoder.run(0, self.chunk, graph=True)
            self._reached = self._encoder.reached()
            self._starts = self._forth()
            for first, last in pieces(*self._segments()[-1], self.chunk):
                self._write(self.stack.forward(self._encoded(first, last), first), first)
            self._last = self._tape_positions()
            self._sinks.drain()  # accumulators that were opened on the way; the way back opens its own
        metering.report(self.stack.usages())
        self._surroundings.watch("a tensor that readout or encode reads", self.tensors())
        self._rest()
        self._surroundings.when = _AFTERWARDS

    def _evaluate_chunk(self, first: int, last: int) -> None:
        self._write(self.stack.infer(self._encoder.run(first, last), first), first)

    def _preview(self, first: int, last: int) -> None:
        self._write(self.stack.preview(self._encoded(first, last), first), first)

    def _write(self, y: Tensor, first: int) -> None:
        """Read out a chunk that has been run."""
        self._readout.write(y, first)

    @property
    def layout(self) -> Any:
        """How the outputs are handed to the user."""
        return self._positions_read.layout

    def tensors(self, asked: Sequence[int] | None = None) -> list[Tensor]:
        """The tensors that gradients flow to, each once; with `asked` from these outputs alone, and last states."""
        heads = self._positions_read.reached
        chosen = heads if asked is None else [heads[number] for number in asked]
        layers = (tensor for layer in self.layers for tensor in layer.flat())
        each = (*layers, *self._reached, *(tensor for reached in chosen for tensor in reached))
        return list({id(tensor): tensor for tensor in each}.values())

    def results(self) -> list[Tensor]:
        """Outputs, and the last states (L, B, H), given away."""
        last, outputs = self.last_state(), self._readout.outputs
        self._last, self._readout.outputs = [], []
        return [*outputs, *(last if isinstance(last, tuple) else (last,))]

    def note(self, results: Sequence[Tensor]) -> list[Tensor]:
        """Note the outputs as they are, without their graph. Returns those from which no gradient flows."""
        learning = self._positions_read.learning
        outputs = results[: len(learning)]
        self._given = [(output.detach(), output._version) for output in outputs]
        return [output for output, learns in zip(outputs, learning, strict=True) if not learns]

    def go_back(self, grads: Sequence[Tensor | None], keep: bool) -> list[Tensor | None]:
        """Rewind from gradients of the results. Returns those of `tensors`; `keep` says that it will be asked again."""
        stream = copy.copy(self) if keep else self
        stream.stack = self.stack.copy() if keep else self.stack
        device = self._batch.inputs.device
        with one_sequence(self._masks), torch.no_grad(), self._environment.restored(device):
            return stream._gone_back(grads[: len(self._given)], grads[len(self._given) :])

    def _gone_back(self, doutputs: Sequence[Tensor | None], dlast: Sequence[Tensor | None]) -> list[Tensor | None]:
        self._surroundings.compare()
        self._check_outputs()
        self._sinks.drain()  # what another way back left that failed
        self._positions_read.asked = [number for number, grad in enumerate(doutputs) if grad is not None]
        self._doutputs = [grad for grad in doutputs if grad is not None]
        layers = range(len(self.layers))
        aim(self.stack, [None if grad is None else grad[layer] for layer in layers for grad in dlast])
        segments, starts = self._segments(), list(self._starts)
        end = starts.pop() if starts else None
        with self._naming_changed():
            with self._encoder.answering():
                self._unwind(list(pieces(*segments.pop(), self.chunk)))
            self._through(segments, starts, end)
        self._rest()
        grads: dict[int, Tensor] = {}
        for tensor, grad in zip(*self.gradients(), strict=True):  # one of the net may be the head's too
            grads[id(tensor)] = grads[id(tensor)] + grad if id(tensor) in grads else grad
        asked = {id(tensor) for tensor in self.tensors(self._positions_read.asked)}  # others have zeros, or nothing
        found = [(id(tensor) in asked, grads.pop(id(tensor), None)) for tensor in self.tensors()]
        if grads:
            raise ReversalError(
                "rewind_outputs: encode or readout reads tensors for some steps that it did not read for the first; "
                "let it read the same ones for all; no gradient was produced"
            )
        return [grad if wanted else None for wanted, grad in found]

    def _check_outputs(self) -> None:
        """Refuse outputs that were changed in place, which are compared with what the readout gives again."""
        for name, (output, version) in zip(self.layout.names(), self._given, strict=True):
            if output._version != version:
                raise ReversalError(
                    f"rewind_outputs: outputs{name} of shape {tuple(output.shape)} were changed in place before "
                    "backward, which compares them with what readout gives again; compute a new tensor from them; no "
                    "gradient was produced"
                )

    def _back(self, first: int, last: int, *, turning: bool) -> tuple[Tensor, ...]:
        (y,) = super()._back(first, last, turning=turning)
        beside = [*(output for output, _ in self._given), *self._doutputs]
        return y, *(tensor[first:last] for tensor in beside)


class _RewindOutputs(torch.autograd.Function):
    """An `OutputStream` that has run, whose backward rewinds."""

    @staticmethod
    def forward(ctx: Any, stream: OutputStream, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.stream = stream
        ctx.set_materialize_grads(False)  # nothing for what no loss was computed from
        results = stream.results()
        ctx.mark_non_differentiable(*stream.note(results))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward("rewind_outputs")
        refuse_batches(grads)
        stream, keep = ctx.stream, graph_retained()
        if stream is None:
            raise RuntimeError(
                "rewind_outputs: backward a second time; the first call needs retain_graph=True to allow it"
            )
        if not keep:
            ctx.stream = None
        return (None, *stream.go_back(grads, keep))


def _checked(rnn: RevRNN, batch: Batch) -> Batch:
    """The batch, time first and without targets, if all in it fits together."""
    what, readout = "rewind_outputs", batch.readout
    check_parts(what, rnn, batch.encode, readout)
    rnn.refuse_linear(what)
    if isinstance(readout, LinearCrossEntropy | FeatureReadout | Readout):
        part = "its logits" if isinstance(readout, LinearCrossEntropy) else "the part of it that gives the prediction"
        raise ValueError(
            f"{what}: readout must give outputs of y (N, H), of which the loss is taken later, got a "
            f"{type(readout).__name__}, which gives a loss; give {part}"
        )
    (inputs,) = check_tensors(what, rnn, batch.encode is None, inputs=batch.inputs)
    check_lengths(batch.lengths, inputs.shape[0], inputs.shape[1], inputs.device)
    return batch._replace(inputs=inputs, targets=inputs.new_empty(*inputs.shape[:2], 0))
