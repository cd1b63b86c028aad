"""How a sequence is cut into chunks."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def spans(begin: int, end: int, most: int) -> list[slice]:
    """Chunks of at most so many steps, evened out over the steps from one to another."""
    size = evened_out(end - begin, most, fewest=1)
    return [slice(*piece) for piece in pieces(begin, end, size)]


def chunks(x: Tensor, steps: int) -> Iterable[tuple[int, Tensor]]:
    """The chunks of a sequence with their first steps."""
    return ((first, x[first:last]) for first, last in pieces(0, x.shape[0], steps))


def pieces(begin: int, end: int, size: int) -> Iterable[tuple[int, int]]:
    """The first and last steps of consecutive pieces of this size; the last piece is what remains."""
    return ((first, min(first + size, end)) for first in range(begin, end, size))


FEWEST_STEPS = 4
"""Shorter chunks would save little memory and cost time: weight gradients are one matmul a chunk."""


def evened_out(steps: int, most: int, *, fewest: int = FEWEST_STEPS) -> int:
    """Steps of a chunk of at most so many, unless those are too few, evened out over the sequence."""
    chunks = max(1, -(-steps // max(fewest, most)))
    return max(1, -(-steps // chunks))
