"""Memory that a sequence uses from its first chunk to its last, in pages of its own.

C's heap puts large blocks among the small ones that come and go with each chunk. When the large ones are freed, their
holes stay resident: measured, a step held up to twice what it had allocated. Pages of their own go back to the system.
"""

from __future__ import annotations

import math
import mmap
import weakref

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


class Room:
    """Memory for one tensor at a time, used again once nobody holds that tensor, a view of it or its storage."""

    LEAST = 2**16
    """Bytes from which it has pages of its own, which are asked for and cleared once."""

    def __init__(self) -> None:
        self._pages: mmap.mmap | None = None
        self._lent: weakref.ref[memoryview] | None = None

    def tensor(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A tensor with no numbers yet, of the dtype and on the device of another."""
        size = math.prod(shape) * like.element_size()
        if like.device.type != "cpu" or size < self.LEAST or (self._lent and self._lent() is not None):
            return like.new_empty(shape)
        if self._pages is None or len(self._pages) < size:
            self._pages = mmap.mmap(-1, size, **_PRIVATE)
        lent = memoryview(self._pages)  # which lives as long as the tensor's storage
        self._lent = weakref.ref(lent)
        # Resized, not viewed: autograd treats views otherwise where they are written to
        return torch.frombuffer(lent, dtype=like.dtype, count=math.prod(shape)).resize_(shape)


def zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros of the dtype and on the device of another; pages of their own take no memory before they are written to."""
    size = math.prod(shape) * like.element_size()
    return like.new_zeros(shape) if like.device.type != "cpu" or size < LEAST else in_own_pages(like, shape)


def copied(tensor: Tensor) -> Tensor:
    """A dense copy of a tensor."""
    return in_own_pages(tensor, tuple(tensor.shape)).copy_(tensor)
