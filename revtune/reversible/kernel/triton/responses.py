"""Responses (V, s) of products, W h + s * (V h), and their way back, as csrc/worker.h, csrc/backward.h, csrc/matrix.h.

V's products are chains of their own, run after W's: what is added is s times them, rounded before it is.

Shapes: K steps, B rows, M positions (step, row), G gates.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from revtune.reversible.kernel.triton.launching import ELEMENTS, OPTIONS
from revtune.reversible.kernel.triton.product import chain, scaled_chain

ADDED, NOTED = tl.constexpr(1), tl.constexpr(2)
"""What RESPONSE says to kernels: that one is added, and that V's products are noted too; 0 is without one."""


class Response(NamedTuple):
    """That of a chunk's recurrent products.

    Attributes:
        weight: V, (G, N), as it is or laid out as kernels read W; None for no response.
        scale: s, (B, G).
        answers: where V's products go, (K, B, G), or None.
    """

    weight: Tensor | None = None
    scale: Tensor | None = None
    answers: Tensor | None = None


NO_RESPONSE = Response()


@triton.jit
def answered(total, more, scale, answers, own, at, here, RESPONSE: tl.constexpr):
    """W's products with s times V's, which are `more`; s is at `own` of its rows, and they are noted at `at`."""
    if RESPONSE == NOTED:
        tl.store(answers + at, more, mask=here)
    return total + tl.load(scale + own, mask=here, other=0.0) * more


@triton.jit
def through(
    gates, weight, response, scale, row, unit, live, wide, some, stride, units,
    RESPONSE: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The gradients of `some` gates of a step, (B, .), carried to what their products have read."""
    total = chain(gates, weight, row, unit, live, wide, some, stride, 1, units, ROWS, UNITS, DEPTH)
    if RESPONSE:
        total += scaled_chain(gates, scale, response, row, unit, live, wide, some, stride, 1, units, ROWS, UNITS, DEPTH)
    return total


@triton.jit
def add(y, products, scale, bias, index, rows, outputs, y_stride, OWN: tl.constexpr, INDEXED: tl.constexpr,
        SIZE: tl.constexpr):  # fmt: skip
    """A position's outputs, with s times V's products, and before that with OWN the bias of its row."""
    position, unit = tl.program_id(0).to(tl.int64), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    here = unit < outputs
    row = tl.load(index + position) if INDEXED else position % rows
    own = row * outputs + unit
    total = tl.load(y + position * y_stride + unit, mask=here, other=0.0)
    if OWN:
        total += tl.load(bias + own, mask=here, other=0.0)
    more = tl.load(products + position * outputs + unit, mask=here, other=0.0)
    tl.store(y + position * y_stride + unit, total + tl.load(scale + own, mask=here, other=0.0) * more, mask=here)


@triton.jit
def back(
    products, d, scale, into, steps, rows, outputs, d_stride,
    SUMMED: tl.constexpr, SCALED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """From the gradient d (M, G): that of a row's s, added up over its steps, and s times it in V's products' place."""
    row, unit = tl.program_id(0).to(tl.int64), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    here = unit < outputs
    factor = tl.load(scale + row * outputs + unit, mask=here, other=0.0)
    total = tl.zeros((SIZE,), tl.float32)
    position = row
    for _ in range(steps):
        grad = tl.load(d + position * d_stride + unit, mask=here, other=0.0)
        there = products + position * outputs + unit
        if SUMMED:
            total += grad * tl.load(there, mask=here, other=0.0)
        if SCALED:
            tl.store(there, grad * factor, mask=here)
        position += rows
    if SUMMED:
        place = into + row * outputs + unit
        tl.store(place, tl.load(place, mask=here, other=0.0) + total, mask=here)


def add_answer(y: Tensor, products: Tensor, scale: Tensor, bias: Tensor | None, index: Tensor | None = None) -> None:
    """y (M, G) = (y + bias) + s * products, s and bias (B, G) being those of a position's row, as `index` (M,) says it.

    Without `index` all rows take turns.
    """
    (positions, outputs), rows = y.shape, len(scale)
    add[positions, triton.cdiv(outputs, ELEMENTS)](
        y, products, scale, y if bias is None else bias, y if index is None else index, rows, outputs, y.stride(0),
        OWN=bias is not None, INDEXED=index is not None, SIZE=ELEMENTS, **OPTIONS,
    )  # fmt: skip


def scale_back(products: Tensor, d: Tensor, scale: Tensor, sum: Tensor | None, scaled: bool) -> None:
    """From the gradient d (K B, G) of what `add_answer` gave: that of s, added to `sum` (B, G), and s times it.

    The latter takes the place of V's products (K, B, G), if it is `scaled`.
    """
    (positions, outputs), rows = d.shape, len(scale)
    back[rows, triton.cdiv(outputs, ELEMENTS)](
        products, d, scale, products if sum is None else sum, positions // rows, rows, outputs, d.stride(0),
        SUMMED=sum is not None, SCALED=scaled, SIZE=ELEMENTS, **OPTIONS,
    )  # fmt: skip
