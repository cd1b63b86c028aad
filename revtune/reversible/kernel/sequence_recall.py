"""A RevGRU or RevLSTM over a sequence whose outputs are all returned, chunk by chunk, and its gradient by recall.

The outputs hold every h, so nothing is stored to rewind it. Backward *recalls* a chunk: it evaluates the gates again,
from the outputs, in one product for all steps of the chunk. A RevLSTM's c is rewound, with an information buffer of its
own. A digest of each chunk tells whether gates and states came out as they were, bit for bit. The gates of the last
steps are kept, in a bounded number of bytes.

Shapes: T time, B batch, I input, H hidden, N = H / 2, G gates, S states of the cell (h, or h and c).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from revtune.reversible import meter as metering
from revtune.reversible.cells import fixed
from revtune.reversible.cells.state_range import check_input, check_state
from revtune.reversible.kernel.asked_once import Number, Truth, equal, require, same
from revtune.reversible.kernel.chunk_buffers import PARTS, ChunkBuffers, unstacked
from revtune.reversible.kernel.chunks import budget_on, most_steps, spans
from revtune.reversible.kernel.kernel import Keep, Kernel
from revtune.reversible.kernel.reference import name_bad_state
from revtune.reversible.kernel.sequence_arguments import SequenceArguments
from revtune.reversible.kernel.tally import new_tally, tallied_bits
from revtune.reversible.kernel.tape import TapePosition, of_rows
from revtune.reversible.kernel.weights import Weights
from revtune.reversible.meter import Usage
from revtune.sequences import setting

BUDGET = 4 * 2**20
"""Bytes of a chunk's gates in training. It bounds memory: outputs and their gradients take about as much anyway."""

WIDE_BUDGET = 4 * BUDGET
"""Bytes of a chunk's gates in training where a layer is so wide that `BUDGET` holds fewer than `ENOUGH_POSITIONS`."""

CACHE_BUDGET = 3 * 2**19
"""Bytes of a chunk's gates in inference, where nothing is kept: they stay in a core's own (L2) cache."""

ENOUGH_POSITIONS = 512
"""Steps times rows from which on a chunk's own costs no longer count: laying out weights, adding to their gradients."""

KEPT = 16 * 2**20
"""Bytes of the last steps' gates that are kept instead of evaluated again, however long the sequence is."""


CPU = torch.device("cpu")


def chunk_steps(rows: int, floats: int, train: bool, device: torch.device = CPU) -> int:
    """The most steps of a chunk, each of which takes so many floats a row."""
    enough = 4 * ENOUGH_POSITIONS * floats  # a float32 has 4 bytes
    budget = max(BUDGET, min(WIDE_BUDGET, enough)) if train else min(BUDGET, max(CACHE_BUDGET, enough))
    return most_steps(budget_on(device, budget), 4 * rows * floats)


def longest_chunk(given: SequenceArguments) -> int:
    """The most steps of a chunk of this sequence."""
    floats = given.hh.shape[0] + given.h.shape[-1]
    return given.chunk or chunk_steps(given.x.shape[1], floats, given.train, given.x.device)


_keeping: ContextVar[bool] = ContextVar("revtune_keeping_gates", default=True)


def keeping_no_gates() -> AbstractContextManager[None]:
    """Within this block sequences that run keep no gates, whose way back takes a little longer then."""
    return setting(_keeping, False)


def kept_steps(given: SequenceArguments) -> int:
    """How many steps' gates are kept."""
    steps, rows = given.x.shape[:2]
    return min(steps, KEPT // (4 * rows * given.hh.shape[0])) if given.train and _keeping.get() else 0


class ChunkRecord(NamedTuple):
    """What backward must find of a chunk.

    Attributes:
        gates: a digest of its gates.
        read: a digest of its inputs and states of h.
        words: how many words it spilled.
    """

    gates: Number
    read: Number
    words: int


class SequenceRun(NamedTuple):
    """A sequence that has run forward.

    Attributes:
        y: outputs, (T, B, H).
        final: the final state, (S, B, H), float64.
        kept: the last steps' gates, (steps, B, G).
        words: those of c chunk by chunk, then all heads; empty where there is no c or no backward pass.
        chunks: the record of each chunk, if there is a backward pass.
    """

    y: Tensor
    final: Tensor
    kept: Tensor
    words: Tensor
    chunks: list[ChunkRecord]


class RecalledLayer:
    """A layer that goes forward through a sequence, or back through one that has run.

    Args:
        given: the operator's arguments.
        wanted: names of weights and responses whose gradients are wanted, as in `Weights`.
        learns_anew: whether those of the states from which rows begin anew are.
        kept: how many steps' gates were kept by the way forward; None before it.
    """

    def __init__(
        self, given: SequenceArguments, wanted: frozenset[str] = frozenset(), *, learns_anew: bool = False,
        kept: int | None = None,
    ) -> None:  # fmt: skip
        self.x, self.state, self.lengths, self.name = given.x, given.state, given.lengths, given.name
        self.train, self.kept = given.train, kept_steps(given) if kept is None else kept
        self.steps, self.rows, self.units = given.x.shape[0], given.x.shape[1], given.h.shape[-1] // PARTS
        self.cell = given.cell()
        self.chunk_steps = longest_chunk(given)
        self.masks = given.masks()
        # Backward does not look for NaN again: digests tell that weights are what forward has looked at.
        self.weights = Weights(
            given.weights(), given.responses(), wanted, self.units, given.name, check=not wanted, engine=given.engine,
            answering=given.answering,
        )  # fmt: skip
        if self.steps > self.chunk_steps:
            self.weights.pack_projection()
        self.resets, self._anew_state, self._learns_anew = given.resets, given.anew, learns_anew
        anew = None if given.resets is None else self._anew()
        self.kernel = Kernel(self.cell, self.weights, self.units, self.masks, given.lengths, given.resets, anew)
        self.heads = self.kernel.heads(self.rows, self.steps, given.share)

    def spans(self) -> list[slice]:
        """The steps of each chunk; those whose gates are kept are chunks of their own."""
        cut = self.steps - self.kept
        return spans(0, cut, self.chunk_steps) + spans(cut, self.steps, self.chunk_steps)

    def forward(self) -> SequenceRun:
        """Run the sequence."""
        alike = "ih" not in self.weights.responses and not self.weights.bias_by_row  # each row's input is projected so
        if not self.train and "ih" in self.weights.tensors and alike and self.weights.engine == "native":
            return self._infer()
        counts, tally = self._counts(), new_tally(self.x)
        cut, kept = self.steps - self.kept, self.x.new_empty(self.kept, self.rows, self.cell.blocks * self.units)
        y = self.x.new_empty(self.steps, self.rows, PARTS * self.units)
        words: list[Tensor] = []
        records: list[ChunkRecord] = []
        for span in self.spans():
            check_input(self.x[span], span.start, self.name)
            into = kept[span.start - cut : span.stop - cut] if span.start >= cut else None
            chunk = self.kernel.chunk_buffers(self.x[span], y[span], recorded=False, first=span.start, into=into)
            spilled = self._run(chunk, span, counts, tally)
            if self.train:
                gates = self.kernel.operators.digest([chunk.gates])
                records.append(ChunkRecord(gates, self._digest(chunk, span), spilled.numel()))
                words.append(spilled)
        if self.train:
            self._report(sum(record.words for record in records), tally)
        return SequenceRun(y, fixed.from_counts(self._whole(counts)), kept, self._packed(words), records)

    def _infer(self) -> SequenceRun:
        """Run the whole sequence in one call, with its input projection: there is no backward pass."""
        check_input(self.x, 0, self.name)
        counts, y = self._counts(), self.x.new_empty(self.steps, self.rows, PARTS * self.units)
        start = counts.clone()
        if not self.kernel.infer(self.x, y, counts):
            self._name_bad_state(slice(0, self.steps), start)
        kept = self.x.new_empty(0, self.rows, self.cell.blocks * self.units)
        return SequenceRun(y, fixed.from_counts(self._whole(counts)), kept, self._packed([]), [])

    def backward(
        self, run: SequenceRun, dy: Tensor | None, dfinal: Tensor | None, *, want_dx: bool
    ) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
        """Gradients of the input, of the first states and of those from which rows begin anew.

        Those of weights are added up in `weights`.
        """
        counts = fixed.to_counts(self._halves(run.final)).contiguous()
        heads, words = self._unpacked(run.words)
        direction, start = self._direction(counts, dfinal), self._start()
        danew = torch.zeros_like(direction) if self._learns_anew else None
        dx = torch.empty_like(self.x) if want_dx else None
        for span, record in list(zip(self.spans(), run.chunks, strict=True))[::-1]:
            chunk = self._recalled(run, span, start[0])
            self._require(same(self.kernel.operators.digest([chunk.gates]), record.gates), span)
            if chunk.c is not None:
                words, spilled = words[: len(words) - record.words], words[len(words) - record.words :]
                self._require(self.kernel.recall_cells(chunk, counts, heads, spilled, span.start), span)
            self.kernel.gradient(chunk, direction, None if dy is None else dy[span], span.start, danew)
            back = self.kernel.projection_gradient(chunk, self.x[span], wanted=want_dx)
            if dx is not None and back is not None:
                dx[span] = back
            # Only now: another thread may have changed them meanwhile
            self._require(same(self._digest(chunk, span), record.read), span)
            del chunk, back  # so that the next chunk's tensors can take their memory
        if not self.kernel.is_gru:
            self._require(self._returned(counts[1], heads[1], start[1]), slice(0, self.steps))
        dstate = self._whole(direction).unbind()
        # Copies, as gradients of two states must share no memory.
        grads = [grad.to(state.dtype, copy=True) for grad, state in zip(dstate, self.state, strict=True)]
        return dx, grads, [] if danew is None else list(map(of_rows, self._whole(danew).unbind(), self._anew_state))

    def _run(self, chunk: ChunkBuffers, span: slice, counts: Tensor, tally: Tensor | None) -> Tensor:
        """Run a chunk and return the words it spilled."""
        start = counts.clone()
        keep = (Keep.HEADS if self.kernel.is_gru else Keep.CELLS) if self.train else Keep.NOTHING
        spilled, _, fine = self.kernel.forward(chunk, counts, self.heads, span.start, keep, tally)
        if not fine:
            self._name_bad_state(span, start)
        return spilled

    def _name_bad_state(self, span: slice, start: Tensor) -> None:
        name_bad_state(
            self.cell, self.weights, self.x[span], span.start, TapePosition(unstacked(start, self.cell)),
            masks=self.masks, lengths=self.lengths, name=self.name, resets=self.resets,
            anew=None if self.kernel.anew is None else unstacked(self.kernel.anew, self.cell),
        )  # fmt: skip

    def _recalled(self, run: SequenceRun, span: slice, start: Tensor) -> ChunkBuffers:
        """A chunk with its gates, kept or evaluated again; `start` is h of the first state in counts, (2, B, N)."""
        first = span.start - (self.steps - self.kept)
        gates = run.kept[first : first + span.stop - span.start] if first >= 0 else None
        chunk = self.kernel.chunk_buffers(self.x[span], run.y[span], recorded=True, first=span.start, gates=gates)
        if span.start:
            before = run.y[span.start - 1 : span.stop - 1]
            chunk = chunk._replace(y_start=before[0], y_before=before)
        else:
            # The first state as the forward pass read it: rounded to counts, then to the dtype of outputs.
            chunk = chunk._replace(y_start=fixed.from_counts(self._whole(start), run.y.dtype).contiguous())
        if gates is None:
            self.kernel.recall(chunk)
        else:
            self.kernel.recall_reset(chunk)
        return chunk

    def _digest(self, chunk: ChunkBuffers, span: slice) -> Number:
        """A digest of what a chunk's gradient is computed from besides gates: its inputs and states of h."""
        digest: Number = self.kernel.operators.digest([chunk.y_start, chunk.y, self.x[span].contiguous()])
        return digest

    def _counts(self) -> Tensor:
        """The first state in counts, (S, 2, B, N)."""
        for state in self.state:
            check_state(state, f"{self.name}: the first state")
        return self._start()

    def _start(self) -> Tensor:
        """The same, of a state that has been checked."""
        return torch.stack([fixed.to_counts(self._halves(state)) for state in self.state]).contiguous()

    def _anew(self) -> Tensor:
        """The states from which rows begin anew in counts, (S, 2, B, N)."""
        for state in self._anew_state:
            check_state(state, f"{self.name}: reset_state")
        whole = self._anew_state or tuple(torch.zeros_like(state) for state in self.state)
        return torch.stack([fixed.to_counts(self._halves(one.expand(self.rows, -1))) for one in whole]).contiguous()

    def _direction(self, counts: Tensor, dfinal: Tensor | None) -> Tensor:
        """The gradient of the final state, (S, 2, B, N), from which backward starts."""
        if dfinal is None:
            return self.x.new_zeros(counts.shape)
        return self._halves(dfinal).to(self.x.dtype).contiguous()

    def _halves(self, state: Tensor) -> Tensor:
        """A state (..., B, H) as (..., 2, B, N)."""
        return state.unflatten(-1, (PARTS, self.units)).movedim(-2, -3)

    def _whole(self, parts: Tensor) -> Tensor:
        """Parts (..., 2, B, N) as states (..., B, H)."""
        return parts.movedim(-3, -2).flatten(-2)

    def _packed(self, words: list[Tensor]) -> Tensor:
        """The words of all chunks, and behind them a RevLSTM's heads, each float64 as four 16-bit words."""
        if self.train and not self.kernel.is_gru:
            words = [*words, self.heads.view(torch.int16).flatten()]
        return torch.cat(words) if words else self.x.new_empty(0, dtype=torch.int16)

    def _unpacked(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """The heads and words that `_packed` put together."""
        if not words.numel():
            return self.heads, words
        size = 4 * self.heads.numel()
        packed = words[len(words) - size :].clone()  # a view as float64 must begin at a multiple of 8 bytes
        return packed.view(torch.float64).view(self.heads.shape), words[: len(words) - size]

    def _returned(self, counts: Tensor, heads: Tensor, start: Tensor) -> Truth:
        """Whether c and its heads are back where they started."""
        pairs, waits = ((counts, start), (heads, self.heads[1])), self.weights.waits
        here, there = (equal(found, known, waits=waits) for found, known in pairs)
        return here & there

    def _report(self, words: int, tally: Tensor | None) -> None:
        stored = 16 * words + 32 * self.heads[1:].numel() if words else 0  # the heads of c alone are of use
        steps = self.steps * self.rows if self.lengths is None else int(self.lengths.sum())
        units = PARTS * self.units * steps if words else 0
        metering.report([Usage(self.name, stored, 0.0 if tally is None else tallied_bits(tally), units)])

    def _require(self, holds: Truth, span: slice) -> None:
        """Refuse gates that are not those of the way forward."""
        require(
            holds,
            lambda: (
                f"{self.name}, steps {span.start}..{span.stop - 1}: gates came out differently in the two "
                "directions: inputs, weights or outputs were changed through .data between forward and backward, or a "
                "matrix product does not repeat. No gradient was produced."
            ),
        )
