"""How a sequence is cut into chunks of steps."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

FEWEST_STEPS = 4
"""Shorter chunks would save little memory and cost time: weight gradients are one matmul a chunk."""


ENOUGH_ROWS = 256
"""Positions at which such a matmul is worth its reading and writing of weights, in however few steps they stand."""


DEVICE_FACTOR = 32
"""How many times the bytes of a CPU's budget a chunk may take on a GPU: there is no core's cache in which to stay, and
launches, of which every chunk has as many, cost more than memory. Chosen by arithmetic; it was not measured."""


def budget_on(device: torch.device, bytes_on_cpu: int) -> int:
    """The bytes that a chunk may take on a device, where it may take so many on a CPU."""
    return bytes_on_cpu if device.type == "cpu" else DEVICE_FACTOR * bytes_on_cpu


def fewest_steps(rows: int) -> int:
    """The fewest steps of a chunk of so many rows."""
    return max(1, min(FEWEST_STEPS, -(-ENOUGH_ROWS // rows)))


def most_steps(budget: int, step_bytes: int, fewest: int = FEWEST_STEPS) -> int:
    """The most steps of a chunk, each of so many bytes, that fit a budget of bytes; no fewer than `fewest`."""
    return max(fewest, budget // step_bytes)


def evened_out(steps: int, most: int, *, fewest: int = FEWEST_STEPS) -> int:
    """The steps of each chunk, at most `most` or `fewest`, such that the last chunk is about as long as the others."""
    chunks = max(1, -(-steps // max(fewest, most)))
    return max(1, -(-steps // chunks))


def spans(begin: int, end: int, most: int) -> list[slice]:
    """The steps from `begin` to `end` in chunks of at most `most` steps, evened out."""
    size = evened_out(end - begin, most, fewest=1)
    return [slice(*piece) for piece in pieces(begin, end, size)]


def chunks(x: Tensor, steps: int) -> Iterable[tuple[int, Tensor]]:
    """The chunks of a sequence (T, ...), of so many steps each, with their first steps."""
    return ((first, x[first:last]) for first, last in pieces(0, x.shape[0], steps))


def pieces(begin: int, end: int, size: int) -> Iterable[tuple[int, int]]:
    """The steps from `begin` to `end` in pieces of this size, from where to where each; the last is what remains."""
    return ((first, min(first + size, end)) for first in range(begin, end, size))
