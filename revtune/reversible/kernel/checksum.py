"""Checksums in plain torch: of states, which rewinding must lead back to, and of tensors that must stay as they were.

The kernel has a checksum of its own in csrc/digest.h, with less arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce

import torch
from torch import Tensor

BETWEEN = "(through .data?) between forward and backward"
"""When a tensor was changed that a layer's backward finds not to be what forward read."""

MEANWHILE = "while backward ran (by another thread's optimizer?)"
"""When a tensor was changed that was found as it should be when backward began, and not when it ended."""

_BLOCK = 2**16
"""Numbers of a tensor that are mixed at a time, so that they stay in a core's cache."""

_DEVICE_BLOCK = 2**24
"""The same on a device that waits for each block."""

_PIECES = 64
"""Pieces in which a tensor is copied that is not dense."""

_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32}
"""Whole numbers by the bytes that one takes."""

_KEY, _MIX = -0x61C8864680B583EB, -0x40A7B892E31B1A47
"""SplitMix64's increment and first multiplier (Steele, Lea, Flood 2014), 0x9E3779B97F4A7C15 and 0xBF58476D1CE4E5B9, as
int64. Both are odd: multiplying by an odd number modulo 2^64 can be undone, so that no bit is lost."""

_FOLD = 0x100000001B3
"""The 64-bit FNV prime. It chains the sums of several tensors, so that their order counts."""


def checksum(depth: int, tensors: Iterable[Tensor]) -> int:
    """64 bits of float64 or int64 tensors and a number; sensitive to every bit, to order and to position."""
    sums = _sums(tensors)
    return chained([depth, *torch.stack(sums).tolist()]) if sums else depth


def checksum_there(depth: int, tensors: Iterable[Tensor]) -> Tensor:
    """The same as a tensor, int64, on these tensors' device, which is not asked for it."""
    sums = _sums(tensors)
    return chained_there([torch.full_like(sums[0], depth), *sums])


def _sums(tensors: Iterable[Tensor]) -> list[Tensor]:
    """A sum of each tensor's values.

    Each value's bits are xored with a key of its position, multiplied, folded and multiplied again before they are
    added up, so that differences do not cancel. 0 and -0 count as the same.
    """
    sums = []
    for values in tensors:
        bits = values if values.dtype == torch.int64 else (values + 0.0).view(torch.int64)  # -0 + 0 is 0
        key = torch.arange(1, values.numel() + 1, device=values.device).mul_(_KEY).view(values.shape)
        mixed = (bits ^ key).mul_(_MIX)
        mixed = (mixed ^ (mixed >> 29)).mul_(_KEY)
        sums.append((mixed ^ (mixed >> 32)).sum())
    return sums


def fingerprint(tensor: Tensor) -> int:
    """The checksum of any tensor's bits, block by block: a change of bits, or of their order, almost surely shows."""
    return chained(checksum(0, _blocks(piece)) for piece in dense_pieces(tensor))


def fingerprint_there(tensor: Tensor) -> Tensor:
    """The same as a tensor, int64, on its device, which is not asked for it."""
    return chained_there(checksum_there(0, _blocks(piece)) for piece in dense_pieces(tensor))


def chained(numbers: Iterable[int]) -> int:
    """One number for several, in their order."""
    return reduce(lambda total, number: (total * _FOLD + number) & (2**64 - 1), numbers, 0)


def chained_there(numbers: Iterable[Tensor]) -> Tensor:
    """The same of tensors of one int64 number each, on their device; it wraps around where `chained` takes 2^64."""
    first, *others = numbers
    return reduce(lambda total, number: total * _FOLD + number, others, first)


def signed(number: int) -> int:
    """A number below 2^64 as int64 has it."""
    return number - 2**64 if number >= 2**63 else number


def dense_pieces(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor's numbers, contiguous, in the order in which they lie in memory; few at a time where that is a copy."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.is_contiguous():
        return iter((tensor,))
    ordered = tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
    pieces = [ordered] if ordered.is_contiguous() else ordered.chunk(_PIECES)
    return (piece.contiguous() for piece in pieces)


def _blocks(dense: Tensor) -> Iterator[Tensor]:
    """The bits of a contiguous tensor as int64."""
    bits = dense.flatten().view(_WHOLE.get(dense.element_size(), torch.int64))
    return (block.long() for block in bits.split(_BLOCK if bits.device.type == "cpu" else _DEVICE_BLOCK))
