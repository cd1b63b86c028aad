"""Triton's interpreter with the arithmetic that a GPU has: its own rounds a fused multiply-add twice.

Kernels are decorated when they are imported, so that what is in here must come before; a test module says
`interpreted.prepare()` at its head.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest


def prepare() -> None:
    """Have Triton interpret, exactly; skip the module where the package is not there."""
    os.environ["TRITON_INTERPRET"] = "1"
    pytest.importorskip("triton")
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    if builder.create_fma is not _create_fma:
        builder.create_fma, builder.create_dot = _create_fma, _create_dot


def fused(a: Any, b: Any, c: Any) -> Any:
    """a * b + c in float32, rounded once.

    In float64 the product is exact. The sum is rounded to odd there: cut off, with the last bit set if anything was.
    Rounding that to float32 is rounding once (Boldo and Melquiond 2008).
    """
    with np.errstate(all="ignore"):
        product, addend = np.float64(a) * np.float64(b), np.float64(c)
        total = np.asarray(product + addend)
        second = total - product
        error = (product - (total - second)) + (addend - second)  # Knuth's: what the sum lost
        bits = total.view(np.int64)
        lost = (error != 0) & np.isfinite(total)
        cut = np.where((error > 0) != (total > 0), bits - 1, bits)
        return np.where(lost, cut | 1, bits).view(np.float64).astype(np.float32)


def _create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
    return _handle(fused(x.data, y.data, z.data), x.dtype.scalar)


def _create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
    """Each output one chain over the inputs in their order, as PTX has it."""
    total = d.data
    for k in range(a.data.shape[1]):
        total = fused(a.data[:, k : k + 1], b.data[k : k + 1], total)
    return _handle(total, d.dtype.scalar)


def _handle(data: Any, kind: Any) -> Any:
    from triton.runtime import interpreter

    return interpreter.TensorHandle(data, kind)
