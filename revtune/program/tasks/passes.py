"""Which examples a batch has: passes over all of them, each in an order of its own."""

from __future__ import annotations

import torch
from torch import Tensor


class Passes:
    """The rows of each batch by its number, so that a run goes on from any.

    Args:
        count: of examples.
        size: of a batch; what a pass leaves over it does not use.
        seed: a run's.
        part: tells apart the orders of sets that one run reads.
    """

    def __init__(self, count: int, size: int, seed: int, part: int) -> None:
        self.count, self.size, self.seed, self.part = count, size, seed, part
        self._last: tuple[int, Tensor] | None = None  # the pass asked for last, and its order

    def rows(self, number: int) -> Tensor:
        """The examples of a batch, from 0 on."""
        epoch, position = divmod(number, self.count // self.size)
        return self._order(epoch)[position * self.size : (position + 1) * self.size]

    def _order(self, epoch: int) -> Tensor:
        """All examples, shuffled anew for every pass."""
        if self._last is not None and self._last[0] == epoch:
            return self._last[1]
        self._last = epoch, torch.randperm(self.count, generator=generator(self.seed, epoch, self.part))
        return self._last[1]


def generator(*numbers: int) -> torch.Generator:
    """What draws as some numbers say, whatever was drawn before."""
    # CPython's hash of integers, the same in every process; runs go on by it, so another mix would change them
    return torch.Generator().manual_seed(hash(numbers))
