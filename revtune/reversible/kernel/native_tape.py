"""The native tape: a kernel runs its chunks, and it keeps what outlives them: state, buffer and digests.

Shapes: K steps of a chunk, B batch, I input, N units of a part, H output, S states of the cell (h, or h and c).
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Mapping, MutableSequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible.cells import fixed
from revtune.reversible.cells.state_range import check_input
from revtune.reversible.cells.word_store import WordStore
from revtune.reversible.kernel.asked_once import Number, numbers, require, same
from revtune.reversible.kernel.checksum import signed
from revtune.reversible.kernel.chunk_buffers import ChunkBuffers, stacked, unstacked
from revtune.reversible.kernel.kernel import Keep, Kernel
from revtune.reversible.kernel.reference import name_bad_state
from revtune.reversible.kernel.tally import new_tally, tallied_bits
from revtune.reversible.kernel.tape import Stored, Tape, TapePosition
from revtune.reversible.meter import Usage
from revtune.reversible.own_pages import copied, in_own_pages, zeros


@dataclass
class NativeBuffer:
    """The information buffer of a batch: heads, and for each chunk that can be rewound its words and a digest.

    Attributes:
        heads: (S, B, width), float64.
        stacks: how many stacks the words of a chunk are in: B, one a row, but for Triton's kernel.
        chunks: the words of each chunk as csrc/words.h seals them: how many each stack has, in 2 numbers of 16 bits,
            then the words stack by stack; empty where none has any.
        digests: a digest of state and heads before each chunk; numbers in an array, or on a device in a list.
    """

    heads: Tensor
    stacks: int
    chunks: WordStore
    digests: MutableSequence[Any] = field(default_factory=lambda: array("q"))

    @property
    def words(self) -> int:
        """How many words are stored."""
        return sum(len(chunk) - 2 * self.stacks for chunk in self.chunks if len(chunk))

    @property
    def stored_bits(self) -> int:
        """What is stored now: 16 bits a word, 32 bits a head, 32 bits a stack and chunk for the number of words."""
        return 16 * self.chunks.words + 32 * self.heads.numel()

    def copy(self) -> NativeBuffer:
        """A buffer that goes its own way from here; the words spilled so far are shared, not copied."""
        return NativeBuffer(self.heads.clone(), self.stacks, self.chunks.copy(), self.digests[:])


class NativeTape(Tape):
    """A tape that runs in the kernel, for cells and tensors that the kernel supports."""

    buffer: NativeBuffer

    def _prepare(self, steps: int, share: int | None) -> None:
        anew = None if self.resets is None else stacked(self.anew, self.cell)
        self.anew = {} if anew is None else unstacked(anew, self.cell)
        self.kernel = Kernel(
            self.cell, self.weights, self.units, self.masks, self.lengths, self.resets, anew, self.starts
        )
        self._sizes = (self.rows, steps, share)
        self._direction: Tensor | None = None
        self._anew_direction: Tensor | None = None
        self._before: Tensor | None = None
        self._kept: tuple[ChunkBuffers, int]

    @property
    def floats_per_step(self) -> int:
        """Its input and that input's gradient, the gates and what responses have like them, outputs and their gradient,
        and rh or c; where rows begin anew, also the half that is laid out as each step finds it."""
        inputs = self.weights.tensors["ih"].shape[1] if "ih" in self.weights.tensors else 0
        return 2 * inputs + self.units * (self.cell.blocks * (1 + self.kernel.rooms) + 6 + (self.resets is not None))

    @property
    def counts(self) -> dict[str, Tensor]:
        """The present counts by part, views of one tensor."""
        return unstacked(self._counts, self.cell)

    @property
    def waits(self) -> bool:
        return self.weights.waits

    def copy(self) -> NativeTape:
        other = copy.copy(self)
        other.buffer, other.weights, other._counts = self.buffer.copy(), self.weights.fresh(), copied(self._counts)
        other.kernel = copy.copy(self.kernel)
        other.kernel.weights = other.weights
        other.kernel.forget_buffers()  # else the two tapes would write over each other's chunks
        other.direction, other._direction, other._before = {}, None, None
        other.anew_direction, other._anew_direction = {}, None
        return other

    def pause(self) -> None:
        self.kernel.rest()
        self._before = None

    def restart(self, position: TapePosition) -> None:
        self._counts = stacked(position.counts, self.cell)
        heads = self.kernel.heads(*self._sizes) if position.heads is None else copied(position.heads)
        self.buffer = NativeBuffer(heads, self.kernel.stacks(heads), WordStore(heads.device))
        if self.waits:
            self.buffer.digests = []
        self._ideal, self._spilled = 0.0, 0

    def position(self) -> TapePosition:
        return TapePosition(unstacked(copied(self._counts), self.cell), copied(self.buffer.heads))

    def stored(self) -> Stored:
        return Stored(list(self.buffer.chunks), [digest % 2**64 for digest in numbers(self.buffer.digests)])

    def take_up(self, stored: Stored) -> None:
        self.buffer.chunks = WordStore.of(stored.words, self.buffer.heads.device)
        checks = map(signed, stored.checks)
        self.buffer.digests = list(checks) if self.waits else array("q", checks)

    def forward(self, x: Tensor, first: int) -> Tensor:
        return self._forward(x, first)

    def _forward(self, x: Tensor, first: int, *, recorded: bool = False) -> Tensor:
        tally = new_tally(x)
        y, words, digest = self._run(x, first, Keep.EVERYTHING, tally, recorded=recorded)
        if tally is not None:
            self._ideal += tallied_bits(tally)
        self.buffer.chunks.push(words)
        self.buffer.digests.append(digest)
        self._spilled += self._unit_steps(x, first)
        return y

    def preview(self, x: Tensor, first: int) -> Tensor:
        return self._run(x, first, Keep.HEADS)[0]

    def infer(self, x: Tensor, first: int) -> Tensor:
        return self._run(x, first, Keep.NOTHING)[0]

    def record(self, x: Tensor, first: int) -> Tensor:
        heads = copied(self.buffer.heads)
        y, _, _ = self._run(x, first, Keep.HEADS, recorded=True)
        assert self._before is not None
        self.final = TapePosition(unstacked(self._counts, self.cell))
        self._counts, self.buffer.heads, self._before = self._before, heads, None
        return y

    def rewind(self, x: Tensor, first: int) -> Tensor:
        self._check_heads(x, first)
        buffers = self.kernel.chunk_buffers(x, recorded=True, first=first, reused=self.reuses_outputs)
        chunk = self._keep(buffers, first)
        if not (self.buffer.chunks and self.buffer.digests):
            raise ReversalError(self._explain(x, first, "the chunk's words or digest are not there"))
        words, recorded = self.buffer.chunks.pop(), self.buffer.digests.pop()
        slices = self._slices_before(first, len(x), chunk.resets) if self.sliced else None
        digest, exact = self.kernel.rewind(chunk, self._counts, self.buffer.heads, words, first, slices)
        require(exact, lambda: self._explain(x, first, "the information buffer did not come out even"))
        unlike = "the state differs from the one recorded before these steps"
        require(same(digest, recorded), lambda: self._explain(x, first, unlike))
        return chunk.y

    def aim(self, direction: dict[str, Tensor]) -> None:
        self._direction = stacked(direction, self.cell)

    def add_gradient(self, dh: Tensor) -> None:
        for part, columns in zip(self.cell.states[0], dh.split(self.units, -1), strict=True):
            self.direction[part].add_(columns)  # a view of what the kernel reads and writes

    def gradient(self, x: Tensor, dy: Tensor | None, *, keep: bool = False, wanted: bool = True) -> Tensor | None:
        chunk, first = self._kept
        if keep:
            chunk = chunk.copied()
        else:
            del self._kept
        if self._direction is None:
            self._direction = in_own_pages(x, tuple(self._counts.shape)).zero_()
        if self.learns_anew and self._anew_direction is None:
            self._anew_direction = zeros(x, tuple(self._counts.shape))
            self.anew_direction = unstacked(self._anew_direction, self.cell)
        self.kernel.gradient(chunk, self._direction, dy, first, self._anew_direction)
        self.direction = unstacked(self._direction, self.cell)
        return self.kernel.projection_gradient(chunk, x, wanted=wanted)

    def tangent(
        self, x: Tensor, first: int, dx: Tensor | None, shift: Tensor | None, start: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        chunk = self.kernel.answered(self._kept[0], x)
        self._kept = (chunk, first)
        nothing = x.new_zeros(self.rows, self.units)
        moved = stacked({part: start.get(part, nothing) for part in self.cell.parts}, self.cell)
        return self.kernel.tangent(chunk, dx, shift, moved, first), unstacked(moved, self.cell)

    def ahead(
        self, x: Tensor, first: int, dx: Tensor | None, shift: Tensor | None, start: Mapping[str, Tensor], *, keep: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        run = self._forward(x, first, recorded=True) if keep else self._run(x, first, Keep.HEADS, recorded=True)[0]
        return run, *self.tangent(x, first, dx, shift, start)

    def usage(self) -> Usage:
        stored = self.buffer.stored_bits if self._spilled else 0
        return Usage(self.name, stored, self._ideal, self._spilled)

    def _run(
        self, x: Tensor, first: int, keep: Keep, tally: Tensor | None = None, *, recorded: bool = False
    ) -> tuple[Tensor, Tensor, Number]:
        """Run a chunk. Returns its outputs, the words spilled, and a digest of state and heads before it."""
        check_input(x, first, self.name)
        reused = self.reuses_outputs and keep is not Keep.NOTHING  # what `infer` returns may be handed to users
        chunk = self.kernel.chunk_buffers(x, recorded=recorded, first=first, reused=reused)
        before = self._note_counts()
        words, digest, fine = self.kernel.forward(
            chunk, self._counts, self.buffer.heads, first, keep, tally, self.sliced
        )
        if not fine:
            start = TapePosition(unstacked(before, self.cell))
            name_bad_state(
                self.cell, self.weights.dropped(), x, first, start, masks=self.masks, lengths=self.lengths,
                name=self.name, resets=self.resets, anew=self.anew, starts=self.starts,
            )  # fmt: skip
        if recorded:
            self._keep(chunk, first)
        return self._keep_slices(chunk.y, first), words, digest

    def _slices_before(self, first: int, steps: int, resets: Tensor | None) -> Tensor:
        """The sliced units as each step of a chunk finds them, (K, B, sliced)."""
        slices = self.slices[first : first + steps]
        if resets is None:
            return slices
        anew = fixed.from_counts(self.anew[self.cell.parts[0]][:, : self.sliced], self.dtype)
        return torch.where(resets.bool().unsqueeze(-1), anew, slices)

    def _note_counts(self) -> Tensor:
        """A copy of the counts before a chunk, which the next chunk's will take the place of."""
        if self._before is None:
            self._before = in_own_pages(self._counts, tuple(self._counts.shape))
        return self._before.copy_(self._counts)

    def _keep(self, chunk: ChunkBuffers, first: int) -> ChunkBuffers:
        """Keep a chunk for `gradient`."""
        self._kept = (chunk, first)
        return chunk
