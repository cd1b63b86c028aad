"""Memory that a sequence uses from its first chunk to its last, in pages of its own.

C's heap puts large blocks among the small ones that come and go with each chunk. When the large ones are freed, their
holes stay resident: measured, a step held up to twice what it had allocated. Pages of their own go back to the system.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

LEAST = 2**18
"""Bytes from which memory has pages of its own. The system clears each page before it is first used, which costs some
0.1 ms a megabyte; for smaller ones, the calls alone would cost more than they save."""

# Python's own default shares the pages with processes that are forked later.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def in_own_pages(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor with no numbers yet, of the dtype and on the device of another; freed like any other."""
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or size < LEAST:
        return like.new_empty(shape)
    return torch.frombuffer(mmap.mmap(-1, size, **_PRIVATE), dtype=like.dtype).view(shape)


def zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros of the dtype and on the device of another; pages of their own take no memory while they are only read."""
    size = math.prod(shape) * like.element_size()
    return like.new_zeros(shape) if like.device.type != "cpu" or size < LEAST else in_own_pages(like, shape)


def copied(tensor: Tensor) -> Tensor:
    """A dense copy of a tensor."""
    return in_own_pages(tensor, tuple(tensor.shape)).copy_(tensor)
