"""Memory that comes from the system and goes back to it at once, whatever the C library's heap holds."""

import mmap

import torch
from torch import Tensor


def mapped(size: int) -> Tensor:
    """Resident bytes of their own mapping, given back when the tensor goes."""
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.uint8).fill_(1)
