"""Digests on the device: a number in which every bit of a tensor, and its place, takes part.

Partial sums wrap around in 64 bits, so that no order of programs matters. They are other numbers than those of
csrc/digest.h: nobody compares a digest of one kernel with one of the other.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from revtune.reversible.kernel.triton.launching import OPTIONS

SIZE = 1024
"""Numbers of a program."""


@triton.jit
def mixed(bits, sums, numbers, first, SIZE: tl.constexpr):
    """Sums of SplitMix64's mixing (Steele, Lea, Flood 2014) of each 32-bit number, xored with a key of its place."""
    number = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    here = number < numbers
    x = tl.load(bits + number, mask=here, other=0).to(tl.int64).to(tl.uint64, bitcast=True)
    x = x ^ ((number + first + 1).to(tl.uint64, bitcast=True) * 0x9E3779B97F4A7C15)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    x = x ^ (x >> 31)
    tl.store(sums + tl.program_id(0), tl.sum(tl.where(here, x.to(tl.int64, bitcast=True), 0)))


def digest(tensors: list[Tensor]) -> Tensor:
    """A digest of contiguous tensors of numbers of 4 or 8 bytes, or fewer, in their order: one number, int64."""
    sums, first = [], 0
    for tensor in tensors:
        bits = words_of(tensor)
        sums.append(bits.new_empty(triton.cdiv(len(bits), SIZE), dtype=torch.int64))
        if len(bits):
            mixed[(len(sums[-1]),)](bits, sums[-1], len(bits), first, SIZE=SIZE, **OPTIONS)
        first += len(bits) + 1
    return torch.cat(sums).sum()


def words_of(tensor: Tensor) -> Tensor:
    """A tensor's bits as 32-bit numbers."""
    flat = tensor.detach().flatten()
    return flat.view(torch.uint8).to(torch.int32) if flat.element_size() < 4 else flat.view(torch.int32)
