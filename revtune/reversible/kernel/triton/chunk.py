"""A chunk's tensors as the kernels of both cells are given them, step by step and half by half.

Shapes: K steps, B rows, N units of a half, M positions (step, row), S states of the cell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from revtune.reversible.cells import fixed
from revtune.reversible.kernel.triton.launching import DEPTH, ROWS, UNITS
from revtune.reversible.kernel.triton.stacks import Stacks

HALVES = 2
"""Halves of a state."""

CUT = {"ROWS": ROWS, "UNITS": UNITS, "DEPTH": DEPTH}
"""How products are cut."""


class Limit(NamedTuple):
    """What bounds forgetting: z becomes slope * z + floor; and whether a RevLSTM's h takes (1 - p) of its update."""

    slope: float
    forgetting: bool
    share: float = 1.0

    @property
    def floor(self) -> float:
        """The least that a gate becomes."""
        return 1.0 - self.slope


class Whole(NamedTuple):
    """State and heads in whole numbers, and what kernels note.

    Attributes:
        counts: (S, 2, B, N), int64.
        heads: (S, B, width), int32.
        flags: one for each stack.
    """

    counts: Tensor
    heads: Tensor
    flags: Tensor

    @classmethod
    def of(cls, counts: Tensor, heads: Tensor, stacks: Stacks) -> Whole:
        """From float64."""
        return cls(counts.long(), heads.to(torch.int32), torch.zeros_like(stacks.depth))

    @property
    def turns(self) -> int:
        """Units of a half that take turns at a head."""
        return triton.cdiv(self.counts.shape[3], self.heads.shape[2])

    def noted(self, bits: tuple[int, ...]) -> list[bool]:
        """Which of these bits any kernel has noted; asks the device once."""
        found: list[bool] = torch.stack([(self.flags & bit).any() for bit in bits]).tolist()
        return found


class Chunk(ABC):
    """A chunk of one layer.

    Args:
        gates: (K, B, G).
        states: h after each step (K, B, 2N) and before the first (B, 2N), and c likewise or None.
        masks: locked masks (B, N) on h1 and h2 as gates read them.
        lengths: steps of each row, (B,), or None.
        limit: what bounds forgetting.
    """

    blocks: int
    """Blocks of gates of a half."""

    def __init__(
        self, gates: Tensor, states: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
        masks: tuple[Tensor | None, Tensor | None], lengths: Tensor | None, limit: Limit,
    ) -> None:  # fmt: skip
        self.gates, self.masks, self.lengths, self.limit = gates, masks, lengths, limit
        self.y, self.y_start, self.c, self.c_start = states
        self.steps, self.rows, self.units = self.y.shape[0], self.y.shape[1], self.y.shape[2] // HALVES

    @abstractmethod
    def evaluate(self, first: int, last: int, half: int, source: Tensor, packed: Tensor) -> None:
        """What `turn` needs of a half at some steps, of which `source` is h' as gates read it, (M, N)."""

    @abstractmethod
    def turn(self, step: int, half: int, packed: Tensor, whole: Whole, stacks: Stacks, number: int, keep: int,
             *, back: bool) -> None:  # fmt: skip
        """A half's states one step on or back, from what `evaluate` gave; `number` is the step's in its sequence."""

    @abstractmethod
    def complete(self, half: int, packed: Tensor) -> None:
        """What `evaluate` leaves of a half's gates at all steps."""

    @abstractmethod
    def differentiate(self, step: int, half: int, direction: Tensor, weight: Tensor, number: int) -> None:
        """Carry the direction (S, 2, B, N) through a half's step; gates become their gradients."""

    def half(self, tensor: Tensor, half: int) -> Tensor:
        """A half's columns of states (..., 2N)."""
        return tensor[..., half * self.units : (half + 1) * self.units]

    def half_gates(self, first: int, last: int, half: int) -> Tensor:
        """A half's gates at some steps, (M, blocks N)."""
        columns = self.blocks * self.units
        return self.gates[first:last].flatten(0, 1)[:, half * columns : (half + 1) * columns]

    def weight(self, packed: Tensor, half: int) -> Tensor:
        """A half's recurrent weight, (blocks N, N)."""
        return packed.view(HALVES, self.blocks * self.units, self.units)[half]

    def before(self, step: int, half: int) -> Tensor:
        """A half's h before a step, (B, N)."""
        return self.half(self.y[step - 1] if step else self.y_start, half)

    def read(self, step: int, half: int) -> Tensor:
        """What a half's gates read at a step, (B, N): half 1 the other after the step, half 0 before it."""
        return self.half(self.y[step], 0) if half else self.before(step, 1)

    def runs(self) -> tuple[Tensor, bool]:
        """Lengths, or any other tensor in their place, and whether rows are ragged."""
        return (self.gates, False) if self.lengths is None else (self.lengths, True)

    def masked(self, half: int) -> tuple[Tensor, bool]:
        """The mask on what a half reads, or any other tensor in its place, and whether there is one."""
        mask = self.masks[1 - half]
        return (self.gates, False) if mask is None else (mask, True)

    def move(self, whole: Whole, stacks: Stacks, packed: Tensor, first: int, keep: int, *, back: bool) -> None:
        """Run the steps, or undo them in the opposite order."""
        steps, halves = range(self.steps), range(HALVES)
        for step in reversed(steps) if back else steps:
            for half in reversed(halves) if back else halves:
                self.evaluate(step, step + 1, half, self.read(step, half), packed)
                self.turn(step, half, packed, whole, stacks, first + step, keep, back=back)

    def recall(self, packed: Tensor) -> None:
        """Evaluate the gates of all steps, whose outputs are known."""
        self.evaluate(0, 1, 0, self.before(0, 1), packed)
        if self.steps > 1:
            self.evaluate(1, self.steps, 0, self.half(self.y[:-1].flatten(0, 1), 1), packed)
        self.evaluate(0, self.steps, 1, self.half(self.y.flatten(0, 1), 0), packed)
        for half in range(HALVES):
            self.complete(half, packed)

    def carry(self, direction: Tensor, weight: Tensor, dy: Tensor | None, first: int) -> None:
        """Carry the direction and dy (K, B, 2N) back through all steps."""
        for step in reversed(range(self.steps)):
            if dy is not None:
                direction[0] += dy[step].view(self.rows, HALVES, self.units).movedim(1, 0)
            for half in reversed(range(HALVES)):
                self.differentiate(step, half, direction, weight, first + step)


def floats(counts: Tensor) -> Tensor:
    """A state (2, B, N) in float64 counts as floats (B, 2N)."""
    return fixed.from_counts(counts, torch.float32).movedim(0, 1).flatten(1)
