"""Dropout masks that are drawn once a sequence and kept until it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn


class Sequence:
    """The masks drawn for one sequence, from a generator of their own.

    Its seed is drawn before the sequence is trained on, so that a replay, which draws no masks, leaves torch's
    generator in step.
    """

    def __init__(self) -> None:
        self.masks: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self._seed = new_seed() if torch.is_grad_enabled() else None

    def draw(self, shape: tuple[int, ...], p: float, like: Tensor) -> Tensor:
        """A new mask; the n-th one depends on the sequence's seed and n alone."""
        self._seed = new_seed() if self._seed is None else self._seed
        generator = torch.Generator(like.device).manual_seed(self._seed + len(self.masks))
        return drop_mask(shape, p, like, generator)


_sequence: ContextVar[Sequence | None] = ContextVar("revtune_sequence", default=None)


def new_seed() -> int:
    """A seed from torch's generator for a generator of one's own."""
    return int(torch.randint(2**62, ()))


@contextmanager
def one_sequence(sequence: Sequence | None = None) -> Iterator[None]:
    """Within this block locked masks are drawn once and used again: a new sequence's, or those of one met before."""
    token = _sequence.set(sequence or Sequence())
    try:
        yield
    finally:
        _sequence.reset(token)


def drop_mask(shape: tuple[int, ...], p: float, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A dropout mask: 0 with probability p, else 1 / (1 - p); all zeros for p = 1."""
    keep = torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1.0 - p, generator=generator)
    return keep.div_(1.0 - p) if p < 1.0 else keep


def locked_mask(owner: nn.Module, shape: tuple[int, ...], p: float, like: Tensor) -> Tensor:
    """The mask that `owner` uses for the present sequence."""
    sequence = _sequence.get()
    if sequence is None:
        return drop_mask(shape, p, like)
    key = (id(owner), shape)
    if key not in sequence.masks:
        sequence.masks[key] = sequence.draw(shape, p, like)
    return sequence.masks[key]
