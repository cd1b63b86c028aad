"""Kernels that apply the functions of Triton's arithmetic to numbers one by one, for tests; see `tests.interpreted`."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from revtune.reversible.kernel.triton.arithmetic import (
    forget_integer,
    from_count,
    multiply_only,
    pop,
    push,
    sigmoid,
    tanh,
    to_count,
)

SIZE = 1 << 15


@triton.jit
def _gates(x, y, t, n, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    value = tl.load(x + i, mask=i < n, other=0.0)
    tl.store(y + i, sigmoid(value), mask=i < n)
    tl.store(t + i, tanh(value), mask=i < n)


@triton.jit
def _forget(z, zi, n, slope, floor, TOP: tl.constexpr, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(zi + i, forget_integer(tl.load(z + i, mask=i < n, other=0.0), slope, floor, TOP), mask=i < n)


@triton.jit
def _counts(x, count, value, n, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    found = to_count(tl.load(x + i, mask=i < n, other=0.0))
    tl.store(count + i, found, mask=i < n)
    tl.store(value + i, from_count(found), mask=i < n)


@triton.jit
def _buffer(h, s, zi, n, KIND: tl.constexpr, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    count, head = tl.load(h + i, mask=i < n, other=0), tl.load(s + i, mask=i < n, other=16384)
    forget = tl.load(zi + i, mask=i < n, other=1024)
    if KIND == 0:
        count, head = push(count, head, forget)
    elif KIND == 1:
        count, head = pop(count, head, forget)
    else:
        count = multiply_only(count, forget)
    tl.store(h + i, count, mask=i < n)
    tl.store(s + i, head, mask=i < n)


def _run(kernel: Any, *given: Any, numbers: int, **constants: int) -> None:
    kernel[triton.cdiv(numbers, SIZE),](*given, **constants, SIZE=SIZE)


def gates(x: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid and tanh of numbers."""
    y, t = torch.empty_like(x), torch.empty_like(x)
    _run(_gates, x, y, t, len(x), numbers=len(x))
    return y, t


def forget_integers(z: Tensor, slope: float, top: int) -> Tensor:
    """Forget integers of gates, int32."""
    zi = torch.empty_like(z, dtype=torch.int32)
    _run(_forget, z, zi, len(z), slope, 1.0 - slope, numbers=len(z), TOP=top)
    return zi


def counts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Counts of values, int64, and the values of these."""
    count, value = torch.empty_like(x, dtype=torch.int64), torch.empty_like(x)
    _run(_counts, x, count, value, len(x), numbers=len(x))
    return count, value


def in_buffer(kind: str, h: Tensor, s: Tensor, zi: Tensor) -> tuple[Tensor, Tensor]:
    """Counts and heads after "push", "pop" or "multiply_only", int64 and int32."""
    count, head = h.long(), s.to(torch.int32)
    which = ("push", "pop", "multiply_only").index(kind)
    _run(_buffer, count, head, zi.to(torch.int32), len(h), numbers=len(h), KIND=which)
    return count, head
