"""A stream whose outputs of all steps are kept, and whose gradients come later, when a loss of them is differentiated.

Shapes: T time, K steps of a chunk, B batch, H hidden, L layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible import meter as metering
from revtune.reversible.kernel.chunks import pieces
from revtune.reversible.kernel.environment import Environment
from revtune.reversible.layers.masks import SequenceMasks, one_sequence
from revtune.reversible.layers.rewind import aim
from revtune.reversible.streams.heads import ChunkHeads, HeadPass
from revtune.reversible.streams.once import reading
from revtune.reversible.streams.stream import Stream
from revtune.reversible.transforms import graph_retained, refuse_batches, refuse_double_backward

_AFTERWARDS = "between rewind_outputs and the end of its backward (by an optimizer's step, or through .data?)"


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
            self._outward()
            self._sinks.drain()  # accumulators that were opened on the way; the way back opens its own
        self._surroundings.watch("a tensor that readout or encode reads", self.tensors())
        self._rest()
        self._surroundings.when = _AFTERWARDS

    def _outward(self) -> None:
        """Run the sequence and keep its outputs, so that `_homeward` can rewind it."""
        self._starts = self._forth()
        for first, last in pieces(*self._segments()[-1], self.chunk):
            self._take(self.stack.forward(self._encoded(first, last), first), first)
        self._last = self._tape_positions()
        metering.report(self.stack.usages())

    def _preview(self, first: int, last: int) -> None:
        self._take(self.stack.preview(self._encoded(first, last), first), first)

    def _take(self, y: Tensor, first: int) -> None:
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
        """Outputs, and the last states of the layers that stream, (L, B, H), given away."""
        last, outputs = self._last_states(), self._readout.outputs
        self._last, self._readout.outputs = [], []
        return [*outputs, *last]

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
        inputs = self._batch.inputs
        with one_sequence(self._masks), reading(inputs), torch.no_grad(), self._environment.restored(inputs.device):
            return stream._gone_back(grads[: len(self._given)], grads[len(self._given) :])

    def _gone_back(self, doutputs: Sequence[Tensor | None], dlast: Sequence[Tensor | None]) -> list[Tensor | None]:
        self._surroundings.compare()
        self._check_outputs()
        self._sinks.drain()  # what another way back left that failed
        self._positions_read.asked = [number for number, grad in enumerate(doutputs) if grad is not None]
        self._doutputs = [grad for grad in doutputs if grad is not None]
        layers = range(len(self.layers))
        aim(self.stack, [None if grad is None else grad[layer] for layer in layers for grad in dlast])
        with self._naming_changed():
            self._homeward()
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

    def _homeward(self) -> None:
        """Rewind what `_outward` ran, with gradients of the outputs."""
        segments, starts = self._segments(), list(self._starts)
        end = starts.pop() if starts else None
        with self._encoder.answering():
            self._unwind(list(pieces(*segments.pop(), self.chunk)))
        self._through(segments, starts, end)

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


class RewindOutputs(torch.autograd.Function):
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
