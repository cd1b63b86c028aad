"""Batches of signals of many lengths: those of like lengths together, so that little is padded."""

from __future__ import annotations

import torch
from torch import Tensor

from revtune.program.tasks.passes import Passes

POOL = 8
"""Batches that are drawn together and cut by length; fewer where there are not so many examples."""


class LikeLengths:
    """The rows of each batch by its number, as `Passes` has them, near each other in length.

    Args:
        lengths: of the examples.
        size: of a batch.
        seed: a run's.
    """

    def __init__(self, lengths: list[int], size: int, seed: int) -> None:
        self.lengths, self.size = torch.tensor(lengths), size
        self.pool = max(1, min(POOL, len(lengths) // size))
        self.passes = Passes(len(lengths), self.pool * size, seed, 1)

    def rows(self, number: int) -> list[int]:
        """The examples of a batch, from 0 on."""
        drawn = self.passes.rows(number // self.pool)
        drawn = drawn[self.lengths[drawn].argsort(stable=True)]
        # batches of a pool in an order of its own, else a pool would always end with what is longest
        turn = torch.randperm(self.pool, generator=torch.Generator().manual_seed(number // self.pool))
        begin = int(turn[number % self.pool]) * self.size
        found: list[int] = drawn[begin : begin + self.size].tolist()
        return found


def ending_together(signals: list[Tensor]) -> Tensor:
    """Signals (T, ...) side by side, (T, B, ...), zeros before those that are shorter."""
    return torch.nn.utils.rnn.pad_sequence(signals, padding_side="left")


def beginning_together(signals: list[Tensor], padding: float = 0.0) -> Tensor:
    """Signals (T, ...) side by side, (T, B, ...), padded after those that are shorter."""
    return torch.nn.utils.rnn.pad_sequence(signals, padding_value=padding)
