"""A RevGRU or RevLSTM over a sequence whose outputs are all returned, chunk by chunk: there, and back by recall.

Outputs tell every h, so nothing is kept to rewind it: backward evaluates a chunk's gates again, from outputs, in one
product for all its steps. Of a RevLSTM c is rewound, with a buffer of its own. One number a chunk tells whether gates
and states are what they were, bit for bit. The last steps' gates are kept, up to a bound that no length moves.

Shapes: T time, B batch, I input, H hidden, N = H / 2, G gates, S states of the cell (h, or h and c).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible import meter as metering
from revtune.reversible.cells import fixed
from revtune.reversible.cells.gru import rev_gru
from revtune.reversible.cells.lstm import rev_lstm
from revtune.reversible.cells.state_range import check_input, check_state
from revtune.reversible.kernel.chunks import FEWEST_STEPS, spans
from revtune.reversible.kernel.kernel import PARTS, Keep, Kernel, Room, bits_of, new_tally, unstacked
from revtune.reversible.kernel.reference import name_bad_state
from revtune.reversible.kernel.sequence_arguments import Operands
from revtune.reversible.kernel.tape import Place
from revtune.reversible.kernel.weights import Weights
from revtune.reversible.meter import Usage

BUDGET = 4 * 2**20
"""Bytes that a chunk's gates may take; outputs and their gradients, which are there anyway, are of that order."""


WIDE = 4 * BUDGET
"""Bytes that those of a wide layer may take, so that its chunks are long enough."""


KEPT = 16 * 2**20
"""Bytes of the last steps' gates that are kept, whatever the length: they need not be evaluated again."""


NEAR = 3 * 2**19
"""Bytes of a chunk's gates that stay in a core's own cache, where nothing is kept for a way back."""


POSITIONS = 512
"""Steps times rows at which it no longer counts to lay out weights for a chunk and to add to their gradients."""


def chunk_steps(rows: int, floats: int, train: bool) -> int:
    """The most steps of a chunk, of which each takes so many floats a row."""
    worth = 4 * POSITIONS * floats
    budget = max(BUDGET, min(WIDE, worth)) if train else min(BUDGET, max(NEAR, worth))
    return max(FEWEST_STEPS, budget // (4 * rows * floats))


def kept_steps(given: Operands) -> int:
    """How many steps' gates are kept."""
    steps, rows = given.x.shape[:2]
    return min(steps, KEPT // (4 * rows * given.hh.shape[0])) if given.train else 0


class Known(NamedTuple):
    """What is known of a chunk once it has run: a digest of its inputs, gates and states, and how many words it has."""

    digest: int
    words: int


class Ran(NamedTuple):
    """A sequence that has run.

    Attributes:
        y: outputs, (T, B, H).
        final: the final state, (S, B, H), float64.
        kept: the last steps' gates, (steps, B, G).
        words: those of c chunk by chunk, then all heads; nothing where there is no c or no way back.
        chunks: what is known of each chunk, if there is a way back.
    """

    y: Tensor
    final: Tensor
    kept: Tensor
    words: Tensor
    chunks: list[Known]


class RecalledLayer:
    """A layer that goes forward through a sequence, or back through one that has run.

    Args:
        given: what the sequence is run with.
        wanted: names of weights and responses whose gradients are wanted, as in `Weights`.
    """

    def __init__(self, given: Operands, wanted: frozenset[str] = frozenset()) -> None:
        self.x, self.state, self.lengths, self.name = given.x, given.state, given.lengths, given.name
        self.train, self.chunk, self.kept = given.train, given.chunk, kept_steps(given)
        self.steps, self.rows, self.units = given.x.shape[0], given.x.shape[1], given.h.shape[-1] // PARTS
        if given.c is None:
            self.cell = rev_gru(given.bits, forgetting=given.forgetting)
        else:
            self.cell = rev_lstm(given.bits, forgetting=given.forgetting, bounded=given.bounded)
        self.masks = given.masks()
        self.weights = Weights(
            given.weights(), given.responses(), wanted, self.units, given.name, check=not wanted, native=True
        )
        if self.steps > self.chunk:
            self.weights.pack_projection()
        self.kernel = Kernel(self.cell, self.weights, self.units, self.masks, given.lengths)
        self.heads = self.kernel.heads(self.rows, self.steps, given.share)

    def spans(self) -> list[slice]:
        """The steps of each chunk; those whose gates are kept are chunks of their own."""
        cut = self.steps - self.kept
        return spans(0, cut, self.chunk) + spans(cut, self.steps, self.chunk)

    def forward(self) -> Ran:
        """Run the sequence."""
        if not self.train and "ih" in self.weights.tensors and "ih" not in self.weights.responses:
            return self._infer()
        counts, tally = self._counts(), new_tally()
        cut, kept = self.steps - self.kept, self.x.new_empty(self.kept, self.rows, self.cell.blocks * self.units)
        y = self.x.new_empty(self.steps, self.rows, PARTS * self.units)
        words: list[Tensor] = []
        chunks: list[Known] = []
        for span in self.spans():
            check_input(self.x[span], span.start, self.name)
            into = kept[span.start - cut : span.stop - cut] if span.start >= cut else None
            room = self.kernel.room(self.x[span], y[span], recorded=False, into=into)
            spilled = self._run(room, span, counts, tally)
            if self.train:
                chunks.append(Known(self._digest(room, y, span), spilled.numel()))
                words.append(spilled)
        if self.train:
            self._report(sum(known.words for known in chunks), tally)
        return Ran(y, fixed.from_counts(self._whole(counts)), kept, self._packed(words), chunks)

    def _infer(self) -> Ran:
        """Run it at once, as nobody will go back through it."""
        check_input(self.x, 0, self.name)
        counts, y = self._counts(), self.x.new_empty(self.steps, self.rows, PARTS * self.units)
        start = counts.clone()
        if not self.kernel.infer(self.x, y, counts):
            self._name_bad_state(slice(0, self.steps), start)
        kept = self.x.new_empty(0, self.rows, self.cell.blocks * self.units)
        return Ran(y, fixed.from_counts(self._whole(counts)), kept, self._packed([]), [])

    def backward(
        self, ran: Ran, dy: Tensor | None, dfinal: Tensor | None, *, want_dx: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients of the input and of the first states; those of weights are in `weights`."""
        counts = fixed.to_counts(self._halves(ran.final)).contiguous()
        heads, words = self._unpacked(ran.words)
        direction = self._direction(counts, dfinal)
        dx = torch.empty_like(self.x) if want_dx else None
        for span, known in list(zip(self.spans(), ran.chunks, strict=True))[::-1]:
            room = self._recalled(ran, span)
            if self._digest(room, ran.y, span) != known.digest:
                raise ReversalError(self._explain(span))
            if room.c is not None:
                words, spilled = words[: len(words) - known.words], words[len(words) - known.words :]
                if not self.kernel.recall_cells(room, counts, heads, spilled, span.start):
                    raise ReversalError(self._explain(span))
            grads = self.kernel.gradient(room, direction, None if dy is None else dy[span], span.start)
            self.weights.add_projection(self.x[span], grads)
            if dx is not None:
                dx[span] = self.weights.project_back(grads)
            del room, grads
        if not (self.kernel.is_gru or self._returned(counts[1], heads[1])):
            raise ReversalError(self._explain(slice(0, self.steps)))
        found = self._whole(direction)
        return dx, [grad.to(state.dtype, copy=True) for grad, state in zip(found.unbind(), self.state, strict=True)]

    def _run(self, room: Room, span: slice, counts: Tensor, tally: Tensor | None) -> Tensor:
        """Run a chunk: the words it spilled."""
        start = counts.clone()
        keep = (Keep.HEADS if self.kernel.is_gru else Keep.CELLS) if self.train else Keep.NOTHING
        spilled, _, fine = self.kernel.forward(room, counts, self.heads, span.start, keep, tally)
        if not fine:
            self._name_bad_state(span, start)
        return spilled

    def _name_bad_state(self, span: slice, start: Tensor) -> None:
        place, x = Place(unstacked(start, self.cell)), self.x[span]
        name_bad_state(
            self.cell, self.weights, x, span.start, place, masks=self.masks, lengths=self.lengths, name=self.name
        )

    def _recalled(self, ran: Ran, span: slice) -> Room:
        """A chunk with its gates, kept or evaluated again."""
        first = span.start - (self.steps - self.kept)
        gates = ran.kept[first : first + span.stop - span.start] if first >= 0 else None
        room = self.kernel.room(self.x[span], ran.y[span], recorded=True, gates=gates)
        if span.start:
            before = ran.y[span.start - 1 : span.stop - 1]
            room = room._replace(y_start=before[0], y_before=before)
        else:
            room = room._replace(y_start=fixed.from_counts(fixed.to_counts(self.state[0]), ran.y.dtype).contiguous())
        if gates is None:
            self.kernel.recall(room)
        else:
            self.kernel.reset(room)
        return room

    def _digest(self, room: Room, y: Tensor, span: slice) -> int:
        """A number for what a chunk's gradient is computed from: its inputs, gates and states of h."""
        number: int = torch.ops.revtune.digest([room.gates, room.y_start, y[span], self.x[span].contiguous()])
        return number

    def _counts(self) -> Tensor:
        """The first state in counts, (S, 2, B, N)."""
        for state in self.state:
            check_state(state, f"{self.name}: the first state")
        return torch.stack([fixed.to_counts(self._halves(state)) for state in self.state]).contiguous()

    def _direction(self, counts: Tensor, dfinal: Tensor | None) -> Tensor:
        """The gradient of the final state, (S, 2, B, N), from which the way back starts."""
        dtype = self.x.dtype
        if dfinal is None:
            return torch.zeros(counts.shape, dtype=dtype)
        return self._halves(dfinal).to(dtype).contiguous()

    def _halves(self, state: Tensor) -> Tensor:
        """A state (..., B, H) as (..., 2, B, N)."""
        return state.unflatten(-1, (PARTS, self.units)).movedim(-2, -3)

    def _whole(self, parts: Tensor) -> Tensor:
        """Parts (..., 2, B, N) as states (..., B, H)."""
        return parts.movedim(-3, -2).flatten(-2)

    def _packed(self, words: list[Tensor]) -> Tensor:
        """The words of all chunks, and of a RevLSTM the heads behind them."""
        if self.train and not self.kernel.is_gru:
            words = [*words, self.heads.view(torch.int16).flatten()]
        return torch.cat(words) if words else self.x.new_empty(0, dtype=torch.int16)

    def _unpacked(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """The heads at the end, and the words before them."""
        if not words.numel():
            return self.heads, words
        size = 4 * self.heads.numel()
        heads = words[len(words) - size :].clone().view(torch.float64).view(self.heads.shape)
        return heads, words[: len(words) - size]

    def _returned(self, counts: Tensor, heads: Tensor) -> bool:
        """Whether c and its heads are as they were at first."""
        return torch.equal(counts, fixed.to_counts(self._halves(self.state[-1]))) and torch.equal(heads, self.heads[1])

    def _report(self, words: int, tally: Tensor | None) -> None:
        stored = 16 * words + 32 * self.heads[1:].numel() if words else 0
        steps = self.steps * self.rows if self.lengths is None else int(self.lengths.sum())
        units = PARTS * self.units * steps if words else 0
        metering.report([Usage(self.name, stored, 0.0 if tally is None else bits_of(tally), units)])

    def _explain(self, span: slice) -> str:
        return (
            f"{self.name}, steps {span.start}..{span.stop - 1}: gates came out differently in the two directions: "
            "inputs, weights or outputs were changed through .data between forward and backward, or a matrix product "
            "does not repeat. No gradient was produced."
        )
