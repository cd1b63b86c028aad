"""Triton's interpreter with the arithmetic that a GPU has: its own rounds a fused multiply-add twice.

Triton decides when it is imported whether it interprets or compiles, so that `prepare` must come first.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any
from unittest import mock

import numpy as np


def prepare() -> None:
    """Import Triton and what is written in it, to be interpreted, exactly."""
    with mock.patch.dict("os.environ", TRITON_INTERPRET="1"):
        for module in (
            "triton.experimental.gluon",  # which the interpreter imports late
            "revtune.reversible.kernel.triton.operators",
            "tests.one_by_one",
        ):
            import_module(module)
    builder = import_module("triton.runtime.interpreter").InterpreterBuilder
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
    return _handle(fused(x.data, y.data, z.data), x)


def _create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
    """Each output one chain over the inputs in their order, as PTX has it."""
    total = d.data
    padding = ~(a.data.any(0) | b.data.any(1))  # zeros on both sides: they change no sum, and are most of a small tile
    for k in np.flatnonzero(~padding):
        total = fused(a.data[:, k : k + 1], b.data[k : k + 1], total)
    return _handle(total, d)


def _handle(data: Any, like: Any) -> Any:
    return import_module("triton.runtime.interpreter").TensorHandle(data, like.dtype.scalar)
