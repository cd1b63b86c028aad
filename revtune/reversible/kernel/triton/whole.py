"""State and heads in whole numbers, as kernels read and write them, beside what these note.

Shapes: S states of the cell, B rows, N units of a half.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from revtune.reversible.cells import fixed
from revtune.reversible.kernel.triton.stacks import Stacks


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
        return self.turns_of(self.counts.shape[3])

    def turns_of(self, units: int) -> int:
        """How many of so many units take turns at a head."""
        return triton.cdiv(units, self.heads.shape[2])

    def noted(self, bits: tuple[int, ...], *others: Tensor) -> list[int]:
        """Which of these bits any kernel has noted, 1 or 0, and other numbers; asks the device once."""
        found: list[int] = torch.stack([*((self.flags & bit).any().long() for bit in bits), *others]).tolist()
        return found


def floats(counts: Tensor) -> Tensor:
    """A state (2, B, N) in float64 counts as floats (B, 2N)."""
    return fixed.from_counts(counts, torch.float32).movedim(0, 1).flatten(1)
