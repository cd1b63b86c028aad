"""The native tape: what outlives a chunk that the C++ kernel runs, and the checks.

Shapes: K steps of a chunk, B batch, I input, N units of a part, H output, S states of the cell (h, or h and c).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible.cells.state_range import check_input
from revtune.reversible.kernel.kernel import Keep, Kernel, Room, bits_of, new_tally, stacked, unstacked
from revtune.reversible.kernel.reference import name_bad_state
from revtune.reversible.kernel.tape import Place, Tape
from revtune.reversible.meter import Usage


@dataclass
class NativeBuffer:
    """The information buffer of a batch: heads, and for each chunk that can be rewound its words and where it began.

    Attributes:
        heads: (S, B, width), float64.
        chunks: words as the kernel seals them, 2 B numbers and then 16 bits each.
        checks: a number for state and heads before each chunk.
    """

    heads: Tensor
    chunks: list[Tensor] = field(default_factory=list)
    checks: list[int] = field(default_factory=list)

    @property
    def words(self) -> int:
        """How many words are stored."""
        return sum(chunk.numel() - 2 * self.heads.shape[1] for chunk in self.chunks if chunk.numel())

    @property
    def stored_bits(self) -> int:
        """What is stored now: 16 bits a word, 32 bits a head, 32 bits a row and chunk for the number of words."""
        return 16 * sum(chunk.numel() for chunk in self.chunks) + 32 * self.heads.numel()

    def copy(self) -> NativeBuffer:
        """A buffer that goes its own way from here."""
        return NativeBuffer(self.heads.clone(), list(self.chunks), list(self.checks))


class NativeTape(Tape):
    """A tape that runs in the kernel, for a cell and tensors that it supports."""

    buffer: NativeBuffer

    def _prepare(self, steps: int, share: int | None) -> None:
        self.kernel = Kernel(self.cell, self.weights, self.units, self.masks, self.lengths)
        self._heads = self.kernel.heads(self.rows, steps, share)
        self._direction: Tensor | None = None

    @property
    def floats_per_step(self) -> int:
        """Its input and that input's gradient, the gates, outputs and their gradient, and rh or c."""
        inputs = self.weights.tensors["ih"].shape[1] if "ih" in self.weights.tensors else 0
        return 2 * inputs + self.units * (self.cell.blocks + 6)

    @property
    def counts(self) -> dict[str, Tensor]:
        """The present counts by part, views of one tensor."""
        return unstacked(self._counts, self.cell)

    def copy(self) -> NativeTape:
        other = copy.copy(self)
        other.buffer, other.weights, other._counts = self.buffer.copy(), self.weights.fresh(), self._counts.clone()
        other.kernel = copy.copy(self.kernel)
        other.kernel.weights = other.weights
        other.kernel.forget_rooms()
        other.direction, other._direction = {}, None
        return other

    def pause(self) -> None:
        self.kernel.rest()

    def restart(self, place: Place) -> None:
        self._counts = stacked(place.counts, self.cell)
        self.buffer = NativeBuffer((self._heads if place.heads is None else place.heads).clone())
        self._ideal, self._spilled = 0.0, 0

    def standing(self) -> Place:
        return Place(unstacked(self._counts.clone(), self.cell), self.buffer.heads.clone())

    def forward(self, x: Tensor, first: int) -> Tensor:
        tally = new_tally()
        y, words, check = self._run(x, first, Keep.EVERYTHING, tally)
        if tally is not None:
            self._ideal += bits_of(tally)
        self.buffer.chunks.append(words)
        self.buffer.checks.append(check)
        self._spilled += self._unit_steps(x, first)
        return y

    def preview(self, x: Tensor, first: int) -> Tensor:
        return self._run(x, first, Keep.HEADS)[0]

    def infer(self, x: Tensor, first: int) -> Tensor:
        return self._run(x, first, Keep.NOTHING)[0]

    def record(self, x: Tensor, first: int) -> Tensor:
        start = self.standing()
        y, _, _ = self._run(x, first, Keep.HEADS, recorded=True)
        self.final = self.standing()
        assert start.heads is not None
        self.buffer.heads.copy_(start.heads)
        self._counts.copy_(stacked(start.counts, self.cell))
        return y

    def rewind(self, x: Tensor, first: int) -> Tensor:
        room = self._keep(self.kernel.room(x, recorded=True), first)
        words, known = self.buffer.chunks.pop(), self.buffer.checks.pop()
        slices = self.slices[first : first + len(x)] if self.sliced else None
        check, exact = self.kernel.rewind(room, self._counts, self.buffer.heads, words, first, slices)
        if not exact:
            raise ReversalError(self._explain(x, first, "the information buffer did not come out even"))
        if check != known:
            raise ReversalError(self._explain(x, first, "the state differs from the one recorded before these steps"))
        return room.y

    def aim(self, direction: dict[str, Tensor]) -> None:
        self._direction = stacked(direction, self.cell)

    def gradient(self, x: Tensor, dy: Tensor | None, *, keep: bool = False) -> Tensor:
        room, first = self._kept
        if keep:
            room = room._replace(gates=room.gates.clone())
        else:
            del self._kept
        if self._direction is None:
            self._direction = torch.zeros(self._counts.shape, dtype=self.dtype)
        grads = self.kernel.gradient(room, self._direction, dy, first)
        self.direction = unstacked(self._direction, self.cell)
        self.weights.add_projection(x, grads)
        return self.weights.project_back(grads)

    def usage(self) -> Usage:
        stored = self.buffer.stored_bits if self._spilled else 0
        return Usage(self.name, stored, self._ideal, self._spilled)

    def _run(
        self, x: Tensor, first: int, keep: int, tally: Tensor | None = None, *, recorded: bool = False
    ) -> tuple[Tensor, Tensor, int]:
        """Run a chunk: its outputs, the words spilled, and a number for where it began."""
        check_input(x, first, self.name)
        room = self.kernel.room(x, recorded=recorded)
        start = Place(unstacked(self._counts.clone(), self.cell))
        words, check, fine = self.kernel.forward(room, self._counts, self.buffer.heads, first, keep, tally, self.sliced)
        if not fine:
            name_bad_state(
                self.cell, self.weights, x, first, start, masks=self.masks, lengths=self.lengths, name=self.name
            )
        if recorded:
            self._keep(room, first)
        return self._keep_slices(room.y, first), words, check

    def _keep(self, room: Room, first: int) -> Room:
        self._kept = (room, first)
        return room
