"""The operators of a chunk of RevGRU, with the arguments of those in csrc/revtune.cpp, run by Triton's kernels.

States and heads come and go as float64, as everywhere in Python; inside a chunk they are int64 and int32. A chunk asks
the device once for its flags, and once for how many words there are.

Shapes: K steps of a chunk, B batch, N units of a half, G = 6N gates.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from revtune.reversible.cells import fixed
from revtune.reversible.kernel.triton import gru, gru_gradient
from revtune.reversible.kernel.triton.digest import digest
from revtune.reversible.kernel.triton.launching import DEPTH, HEADS, OPTIONS, ROWS, UNITS
from revtune.reversible.kernel.triton.stacks import Stacks, tiles

HALVES, BLOCKS = 2, 3
"""Halves of a state, and blocks of gates of one."""

NOTHING, EVERYTHING = 0, 3
"""What a chunk keeps of the buffer, as in `Keep`."""

OUT_OF_RANGE, RAN_EMPTY, OVERFLOWED = 1, 2, 4
"""What `gru.turn` notes."""


def stacks(rows: int, width: int) -> int:
    """How many stacks the words of a chunk are in: one for each row and tile of its heads."""
    return rows * tiles(width)


def packed_size(blocks: int, units: int) -> int:
    """How many numbers a recurrent weight has as kernels read it: as it is."""
    return HALVES * blocks * units * units


def pack_into(packed: Tensor, weight: Tensor, blocks: int) -> None:
    """Lay out a recurrent weight as kernels read it."""
    packed.view(weight.shape).copy_(weight)


class _Chunk:
    """A chunk's tensors, and the launches of one half at some positions."""

    def __init__(
        self, gates: Tensor, y: Tensor, y_start: Tensor, rh: Tensor | None, masks: tuple[Tensor | None, Tensor | None],
        lengths: Tensor | None, slope: float, forgetting: bool,
    ) -> None:  # fmt: skip
        self.steps, self.rows, self.units = y.shape[0], y.shape[1], y.shape[2] // HALVES
        self.gates, self.y, self.y_start, self.masks, self.lengths = gates, y, y_start, masks, lengths
        self.rh = y.new_empty(1, *y.shape[1:]) if rh is None else rh
        self.slope, self.floor, self.forgetting = slope, 1.0 - slope, forgetting

    def half(self, tensor: Tensor, half: int) -> Tensor:
        """A half's columns of states (..., 2N)."""
        return tensor[..., half * self.units : (half + 1) * self.units]

    def half_gates(self, first: int, last: int, half: int) -> Tensor:
        """A half's gates at some steps, (M, 3N) with rows 6N apart."""
        columns = BLOCKS * self.units
        return self.gates[first:last].flatten(0, 1)[:, half * columns : (half + 1) * columns]

    def weight(self, packed: Tensor, half: int) -> Tensor:
        """A half's recurrent weight, (3N, N)."""
        return packed.view(HALVES, BLOCKS * self.units, self.units)[half]

    def before(self, step: int, half: int) -> Tensor:
        """A half's state before a step, (B, N)."""
        return self.half(self.y[step - 1] if step else self.y_start, half)

    def read(self, step: int, half: int) -> Tensor:
        """What a half's gates read at a step, (B, N): half 1 the other after the step, half 0 before it."""
        return self.half(self.y[step], 0) if half else self.before(step, 1)

    def reset(self, step: int, half: int) -> Tensor:
        """Where r * h' of a step goes."""
        return self.half(self.rh[step % len(self.rh)], half)

    def evaluate(self, first: int, last: int, half: int, source: Tensor, rh: Tensor, packed: Tensor) -> None:
        """z, r and r * h' of some steps, of which `source` is h' and `rh` where the last goes, (M, N) each."""
        mask, positions = self.masks[1 - half], (last - first) * self.rows
        gru.evaluate[triton.cdiv(positions, ROWS), triton.cdiv(self.units, UNITS)](
            self.half_gates(first, last, half), source, rh, self.weight(packed, half), source if mask is None else mask,
            positions, self.rows, self.units, source.stride(-2), rh.stride(-2),
            MASKED=mask is not None, ROWS=ROWS, UNITS=UNITS, DEPTH=DEPTH, **OPTIONS,
        )  # fmt: skip

    def propose(self, first: int, last: int, half: int, rh: Tensor, packed: Tensor) -> None:
        """g of some steps, from r * h'."""
        positions = (last - first) * self.rows
        gru.propose[triton.cdiv(positions, ROWS), triton.cdiv(self.units, UNITS)](
            self.half_gates(first, last, half), rh, self.weight(packed, half), positions, self.units, rh.stride(-2),
            ROWS=ROWS, UNITS=UNITS, DEPTH=DEPTH, **OPTIONS,
        )  # fmt: skip


class _Moving(_Chunk):
    """A chunk that is run or undone, with its state in whole numbers."""

    def move(
        self, counts: Tensor, heads: Tensor, stacks: Stacks, packed: Tensor, first: int, keep: int, *, back: bool
    ) -> int:
        """Run the steps, or undo them in the opposite order. Returns what the kernels note."""
        whole, head = counts[0].long(), heads[0].to(torch.int32)
        flags = torch.zeros_like(stacks.depth)
        steps, halves = range(self.steps), range(HALVES)
        for step in reversed(steps) if back else steps:
            for half in reversed(halves) if back else halves:
                rh = self.reset(step, half)
                self.evaluate(step, step + 1, half, self.read(step, half), rh, packed)
                into = self.before(step, half) if back else self.half(self.y[step], half)
                self._turn(step, half, rh, packed, whole[half], head, stacks, into, flags, first + step, keep, back)
        counts[0].copy_(whole)
        heads[0].copy_(head)
        return self._noted(flags)

    def _turn(
        self, step: int, half: int, rh: Tensor, packed: Tensor, whole: Tensor, head: Tensor, stacks: Stacks,
        into: Tensor, flags: Tensor, number: int, keep: int, back: bool,
    ) -> None:  # fmt: skip
        width = head.shape[1]
        gru.turn[triton.cdiv(self.rows, ROWS), tiles(width)](
            self.half_gates(step, step + 1, half), rh, self.weight(packed, half), whole, head, stacks.words,
            stacks.base, stacks.depth, into, flags, flags if self.lengths is None else self.lengths, self.rows,
            self.units, width, stacks.capacity, number, rh.stride(-2), self.slope, self.floor,
            FORGETTING=self.forgetting, KEEP=keep, BACK=back, RAGGED=self.lengths is not None,
            TURNS=turns(self.units, width), ROWS=ROWS, HEADS=HEADS, DEPTH=DEPTH, **OPTIONS,
        )  # fmt: skip

    @staticmethod
    def _noted(flags: Tensor) -> int:
        """All flags in one number, which is asked of the device."""
        bits = [OUT_OF_RANGE, RAN_EMPTY, OVERFLOWED]
        found = torch.stack([(flags & bit).amax() for bit in bits]).tolist()
        return sum(found)


def turns(units: int, width: int) -> int:
    """Units of a half that take turns at a head."""
    return triton.cdiv(units, width)


def forward(
    gates: Tensor, counts: Tensor, heads: Tensor, y: Tensor, y_start: Tensor, c: Tensor | None, c_start: Tensor | None,
    rh: Tensor | None, packed: Tensor, response: Tensor | None, scale: Tensor | None, mask1: Tensor | None,
    mask2: Tensor | None, lengths: Tensor | None, first: int, slope: float, forgetting: bool, bounded: bool, keep: int,
    tally: Tensor | None, sliced: int = 0, answers: Tensor | None = None, resets: Tensor | None = None,
    anew: Tensor | None = None,
) -> tuple[Tensor, int, bool]:  # fmt: skip
    """Run a chunk. Returns the words spilled, a digest of where it began, and whether states stayed in range."""
    chunk = _Moving(gates, y, y_start, rh, (mask1, mask2), lengths, slope, forgetting)
    y_start.copy_(_floats(counts))
    width, kept = heads.shape[2], keep == EVERYTHING and forgetting
    standing = digest([counts + 0.0, heads + 0.0]) if keep == EVERYTHING else 0
    stacks = Stacks.empty(y, chunk.rows, width, turns(chunk.units, width), chunk.steps, slope, kept=kept)
    noted = chunk.move(counts, heads, stacks, packed, first, keep, back=False)
    assert not noted & OVERFLOWED, "a chunk spilled more words than its forget gates allow"
    if tally is not None and forgetting and keep == EVERYTHING:
        tally += _uses(chunk, first)
    return stacks.sealed() if kept else y.new_empty(0, dtype=torch.int16), standing, not noted & OUT_OF_RANGE


def rewind(
    gates: Tensor, counts: Tensor, heads: Tensor, words: Tensor, y: Tensor, y_start: Tensor, c: Tensor | None,
    c_start: Tensor | None, rh: Tensor | None, packed: Tensor, response: Tensor | None, scale: Tensor | None,
    mask1: Tensor | None, mask2: Tensor | None, lengths: Tensor | None, first: int, slope: float, forgetting: bool,
    bounded: bool, slices: Tensor | None = None, answers: Tensor | None = None, resets: Tensor | None = None,
    anew: Tensor | None = None,
) -> tuple[int, bool]:  # fmt: skip
    """Undo a chunk. Returns a digest of where it began, and whether its words were used up exactly."""
    chunk = _Moving(gates, y, y_start, rh, (mask1, mask2), lengths, slope, forgetting)
    y[-1] = _floats(counts)
    stacks = Stacks.unsealed(words, chunk.rows, heads.shape[2])
    noted = chunk.move(counts, heads, stacks, packed, first, EVERYTHING, back=True)
    return digest([counts + 0.0, heads + 0.0]), not noted & RAN_EMPTY and not bool(stacks.depth.any())


def recall(
    gates: Tensor, y: Tensor, y_start: Tensor, rh: Tensor | None, packed: Tensor, response: Tensor | None,
    scale: Tensor | None, mask1: Tensor | None, mask2: Tensor | None, answers: Tensor | None = None,
    resets: Tensor | None = None, anew: Tensor | None = None,
) -> None:  # fmt: skip
    """Evaluate the gates of a chunk whose outputs are known, all steps at once."""
    rh = torch.empty_like(y) if rh is None else rh
    chunk = _Chunk(gates, y, y_start, rh, (mask1, mask2), None, 1.0, True)
    for half in range(HALVES):
        after = chunk.half(y.flatten(0, 1), 0)
        pieces = [(0, chunk.steps, after)] if half else [(0, 1, chunk.before(0, 1))]
        if not half and chunk.steps > 1:
            pieces.append((1, chunk.steps, chunk.half(y[:-1].flatten(0, 1), 1)))
        for first, last, source in pieces:
            into = chunk.half(rh[first:last].flatten(0, 1), half)
            chunk.evaluate(first, last, half, source, into, packed)
        chunk.propose(0, chunk.steps, half, chunk.half(rh.flatten(0, 1), half), packed)


def gradient(
    gates: Tensor, direction: Tensor, y: Tensor, y_start: Tensor, c: Tensor | None, c_start: Tensor | None,
    weight: Tensor, response: Tensor | None, scale: Tensor | None, mask1: Tensor | None, mask2: Tensor | None,
    lengths: Tensor | None, dy: Tensor | None, first: int, slope: float, forgetting: bool, bounded: bool,
    resets: Tensor | None = None, anew: Tensor | None = None, anew_direction: Tensor | None = None,
) -> None:  # fmt: skip
    """Carry `direction` (1, 2, B, N) and dy (K, B, 2N) back through a chunk; gates become their gradients."""
    chunk = _Backward(gates, y, y_start, None, (mask1, mask2), lengths, slope, forgetting)
    for step in reversed(range(chunk.steps)):
        for half in reversed(range(HALVES)):
            chunk.back(step, half, direction[0], weight, dy, first + step)


class _Backward(_Chunk):
    """A chunk whose gates are known."""

    def back(self, step: int, half: int, direction: Tensor, weight: Tensor, dy: Tensor | None, number: int) -> None:
        """Carry the direction (2, B, N) through one half's step. dy reaches both halves before either is undone."""
        gates, own, rows = self.half_gates(step, step + 1, half), self.weight(weight, half), self.rows
        if half and dy is not None:
            direction += dy[step].view(rows, HALVES, self.units).movedim(1, 0)
        before, source, mask = self.before(step, half), self.read(step, half), self.masks[1 - half]
        gru_gradient.update[rows, triton.cdiv(self.units, _SIZE)](
            gates, direction[half], before, gates if self.lengths is None else self.lengths, self.units,
            before.stride(-2), number, self.slope, self.floor, FORGETTING=self.forgetting,
            RAGGED=self.lengths is not None, SIZE=_SIZE, **OPTIONS,
        )  # fmt: skip
        grid, through = (triton.cdiv(rows, ROWS), triton.cdiv(self.units, UNITS)), torch.empty_like(direction[half])
        factor, cut = source if mask is None else mask, {"ROWS": ROWS, "UNITS": UNITS, "DEPTH": DEPTH}
        gru_gradient.reset[grid](
            gates,
            own,
            source,
            factor,
            through,
            rows,
            self.units,
            source.stride(-2),
            MASKED=mask is not None,
            **cut,
            **OPTIONS,
        )
        gru_gradient.read[grid](
            gates,
            own,
            through,
            factor,
            direction[1 - half],
            rows,
            self.units,
            MASKED=mask is not None,
            **cut,
            **OPTIONS,
        )


_SIZE = 256
"""Units of a program that takes them one by one."""


def _floats(counts: Tensor) -> Tensor:
    """A state (1, 2, B, N) in counts as floats (B, 2N)."""
    return fixed.from_counts(counts[0], torch.float32).movedim(0, 1).flatten(1)


def _uses(chunk: _Chunk, first: int) -> Tensor:
    """How often a chunk used each forget integer, (1025,)."""
    z = chunk.gates.unflatten(-1, (HALVES, BLOCKS, chunk.units))[:, :, :, 0]
    used = ((z * chunk.slope + chunk.floor) * fixed.FORGET_ONE).round().clamp(1, fixed.FORGET_ONE).long()
    if chunk.lengths is not None:
        steps = torch.arange(first, first + chunk.steps, device=z.device).unsqueeze(-1)
        used = used[chunk.lengths > steps]
    return torch.bincount(used.flatten(), minlength=fixed.FORGET_ONE + 1)
