"""The stacks of words of a chunk: one for each row and tile of heads, so that programs need not know of each other.

A chunk's words are sealed as csrc/words.h seals them, with more stacks: how many each has, in 2 numbers of 16 bits,
then the words stack by stack; nothing where there are none.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from revtune.reversible.kernel.triton.launching import HEADS
from revtune.reversible.kernel.triton.resets import COUNT_WORDS, HEAD_WORDS

MOST_BITS = 10
"""A forget integer of 1 of 1024 loses so many bits."""


def tiles(width: int) -> int:
    """Programs over so many heads of a row."""
    return triton.cdiv(width, HEADS)


class Stacks(NamedTuple):
    """Where words lie.

    Attributes:
        words: int16.
        base: where each stack begins, (B tiles,), int64.
        depth: how many words it has, (B tiles,), int32.
        capacity: how many it may have.
    """

    words: Tensor
    base: Tensor
    depth: Tensor
    capacity: int

    @classmethod
    def empty(cls, heads: Tensor, units: int, steps: int, slope: float, *, states: int, lost: int = 0) -> Stacks:
        """Stacks for the heads (S, B, width) of a chunk of so many steps, with room for all words of so many states.

        And for what a row loses where it begins anew: so many states, all times and states together. How often that is
        differs from chunk to chunk, so that the room is a power of two then: else each would have a graph of its own.
        """
        rows, width = heads.shape[1:]
        stacks, turns = rows * tiles(width), triton.cdiv(units, width)
        capacity = states * capacity_of(turns, steps, slope) + lost * words_of_a_state(turns)
        if lost:
            capacity = triton.next_power_of_2(capacity)
        base = torch.arange(stacks, device=heads.device) * capacity
        depth = torch.zeros(stacks, dtype=torch.int32, device=heads.device)
        return cls(heads.new_empty(stacks * capacity, dtype=torch.int16), base, depth, capacity)

    @classmethod
    def unsealed(cls, words: Tensor, rows: int, width: int) -> tuple[Stacks, Tensor]:
        """The stacks that `sealed` put together, and whether words are as many as they say.

        If not, stacks are empty: no program may read where no words are.
        """
        stacks = rows * tiles(width)
        if not words.numel():
            none = words.new_zeros(stacks, dtype=torch.int32)
            return cls(words, none.long(), none, 0), torch.ones_like(none[:1], dtype=torch.bool).all()
        told = words[: 2 * stacks].clone().view(torch.int32)  # a view as int32 must begin at a multiple of 4 bytes
        fit = (told >= 0).all() & (told.sum() == words.numel() - 2 * stacks)
        depth = torch.where(fit, told, 0)
        return cls(words[2 * stacks :], depth.cumsum(0) - depth, depth, 0), fit

    def sealed(self, size: int) -> Tensor:
        """All words, of which there are so many, as one tensor."""
        if not size:
            return self.words.new_empty(0)  # no view, which would keep all of them
        ends = self.depth.cumsum(0)
        place = torch.arange(size, device=self.words.device)
        stack = torch.searchsorted(ends, place, right=True)
        words = self.words[self.base[stack] + place - (ends - self.depth)[stack]]
        return torch.cat([self.depth.view(torch.int16), words])

    def used_up(self, ran_empty: Tensor) -> Tensor:
        """Whether no words are left, and none were missing."""
        return ~(self.depth.any() | ran_empty.any())


def capacity_of(turns: int, steps: int, slope: float) -> int:
    """The most words that the heads of a tile spill in so many steps of both halves.

    Each unit loses at most log2(1024 / zi) bits a step. A head holds up to 16 bits more than when a chunk began.
    """
    least = max(1, round((1.0 - slope) * 1024))
    bits = min(MOST_BITS, 10 - math.log2(least)) + 0.01
    return int(HEADS * (turns * steps * 2 * bits / 16 + 2)) + 1


def words_of_a_state(turns: int) -> int:
    """The words of what a tile's rows lose of a state where they begin anew: both halves' counts, and the heads."""
    return HEADS * (2 * turns * COUNT_WORDS.value + HEAD_WORDS.value)
