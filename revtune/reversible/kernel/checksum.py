"""Numbers that a change of any bit changes: of states, to know them again, and of what must stay as it was."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_BLOCK = 2**16
"""Numbers of a tensor that are mixed at a time, which stay in a core's cache."""


_KEY, _MIX = -0x61C8864680B583EB, -0x40A7B892E31B1A47


def checksum(depth: int, tensors: Iterable[Tensor]) -> int:
    """64 bits of float64 or int64 tensors and a number; sensitive to every bit, to order and to position.

    Each value's bits are xored with a key of its place, multiplied, folded and multiplied again before they are added
    up, so that differences do not cancel. 0 and -0 count as the same.
    """
    total = depth
    for values in tensors:
        bits = values if values.dtype == torch.int64 else (values + 0.0).view(torch.int64)
        key = torch.arange(1, values.numel() + 1, device=values.device).mul_(_KEY).view(values.shape)
        mixed = (bits ^ key).mul_(_MIX)
        mixed = (mixed ^ (mixed >> 29)).mul_(_KEY)
        total = (total * 0x100000001B3 + int((mixed ^ (mixed >> 32)).sum())) & (2**64 - 1)
    return total


def fingerprint(tensor: Tensor) -> int:
    """A number that a change of bits, or of their places, almost surely changes: their checksum, block by block."""
    bits = tensor.detach().resolve_neg().contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int64)
    return checksum(0, (block.long() for block in bits.flatten().split(_BLOCK)))
