"""Matmuls whose outputs are one chain of fused multiply-adds each, over the inputs in their order (csrc/matrix.h).

`tl.dot` with `input_precision="ieee"` continues each output's chain input by input, and nothing here splits a sum. So
an output's bits depend on its own row and the weight alone, not on rows beside it, chunks or tiles.

Shapes: M positions, I inputs, G outputs.
"""

import triton
import triton.language as tl
from torch import Tensor

from revtune.reversible.kernel.triton.launching import DEPTH, OPTIONS, ROWS, UNITS
from revtune.reversible.kernel.triton.rows import found


@triton.jit
def chain(
    x, weight, position, unit, live, wide, inputs, x_stride, w_output, w_input,
    ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """sum_k x[position, k] W[unit, k], each from zero; W's strides say how it lies."""
    return chain_from(
        tl.zeros((ROWS, UNITS), tl.float32), x, weight, position, unit, live, wide, inputs, x_stride, w_output, w_input,
        DEPTH,
    )  # fmt: skip


@triton.jit
def continued(total, value, weight, unit, each, inside, wide, w_output, w_input):
    """Each output's chain in `total`, carried on over the inputs `each`, whose values are `value` (M, .)."""
    at = weight + unit[None, :] * w_output + each[:, None] * w_input
    columns = tl.load(at, mask=wide & tl.trans(inside), other=0.0)
    return tl.dot(value, columns, total, input_precision="ieee")


@triton.jit
def chain_from(total, x, weight, position, unit, live, wide, inputs, x_stride, w_output, w_input, DEPTH: tl.constexpr):
    """The same, from `total` on."""
    lane = tl.arange(0, DEPTH).to(tl.int64)
    for k in range(0, inputs, DEPTH):
        inside = (k + lane < inputs)[None, :]
        value = tl.load(x + position[:, None] * x_stride + (k + lane)[None, :], mask=live & inside, other=0.0)
        total = continued(total, value, weight, unit, k + lane, inside, wide, w_output, w_input)
    return total


@triton.jit
def scaled_chain(
    x, scale, weight, position, unit, live, wide, inputs, x_stride, w_output, w_input,
    ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """`chain` over x[position, k] s[position, k], each rounded; s lies as x does."""
    lane = tl.arange(0, DEPTH).to(tl.int64)
    total = tl.zeros((ROWS, UNITS), tl.float32)
    for k in range(0, inputs, DEPTH):
        inside = (k + lane < inputs)[None, :]
        place = position[:, None] * x_stride + (k + lane)[None, :]
        value = tl.load(x + place, mask=live & inside, other=0.0)
        value *= tl.load(scale + place, mask=live & inside, other=0.0)
        total = continued(total, value, weight, unit, k + lane, inside, wide, w_output, w_input)
    return total


@triton.jit
def read_part(
    source, anew, begins, mask, position, row, column, here, stride, units, ANEW: tl.constexpr, MASKED: tl.constexpr
):
    """Some columns of h' at positions as their step finds them, under the locked mask of their rows."""
    at = position[:, None] * stride + column[None, :]
    read = found(source, anew, begins, at, row[:, None] * units + column[None, :], here, ANEW)
    if MASKED:
        read *= tl.load(mask + row[:, None] * units + column[None, :], mask=here, other=0.0)
    return read


@triton.jit
def read_chain(
    source, anew, begins, mask, weight, position, row, column, live, wide, stride, units,
    ANEW: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """`chain` over h' as `read_part` reads it, for W (G, N)."""
    lane = tl.arange(0, DEPTH).to(tl.int64)
    total = tl.zeros((ROWS, UNITS), tl.float32)
    for k in range(0, units, DEPTH):
        inside = (k + lane < units)[None, :]
        part = live & inside
        read = read_part(source, anew, begins, mask, position, row, k + lane, part, stride, units, ANEW, MASKED)
        total = continued(total, read, weight, column, k + lane, inside, wide, units, 1)
    return total


@triton.jit
def matmul(
    x, weight, bias, y, positions, inputs, outputs, x_stride, y_stride, w_output, w_input,
    FROM: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """y = x W^T (FROM 0), from a bias on (1), or from what y holds (2); W's strides say how it lies."""
    position = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit = (tl.program_id(1) * UNITS + tl.arange(0, UNITS)).to(tl.int64)
    live, wide = (position < positions)[:, None], (unit < outputs)[None, :]
    out = y + position[:, None] * y_stride + unit[None, :]
    total = tl.zeros((ROWS, UNITS), tl.float32)
    if FROM == 1:
        total += tl.load(bias + unit, mask=unit < outputs, other=0.0)[None, :]
    if FROM == 2:
        total += tl.load(out, mask=live & wide, other=0.0)
    total = chain_from(total, x, weight, position, unit, live, wide, inputs, x_stride, w_output, w_input, DEPTH)
    tl.store(out, total, mask=live & wide)


def multiply(x: Tensor, weight: Tensor, out: Tensor, *, bias: Tensor | None = None, add: bool = False) -> None:
    """out = x W^T + bias, or out += x W^T.

    Args:
        x: (M, I), with dense rows.
        weight: (G, I), a view of any strides.
        out: (M, G), with dense rows.
        bias: (G,).
        add: whether to go on from `out`.
    """
    (positions, inputs), outputs = x.shape, weight.shape[0]
    if not (positions and outputs):
        return
    assert x.stride(1) == 1 or inputs == 1
    start = 2 if add else int(bias is not None)
    matmul[triton.cdiv(positions, ROWS), triton.cdiv(outputs, UNITS)](
        x, weight, x if bias is None else bias, out,
        positions, inputs, outputs, x.stride(0), out.stride(0), weight.stride(0), weight.stride(1),
        FROM=start, ROWS=ROWS, UNITS=UNITS, DEPTH=DEPTH, **OPTIONS,
    )  # fmt: skip


def project_into(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor | None = None) -> None:
    """y (M, G) = x W^T + bias."""
    multiply(x, weight, y, bias=bias)


def project_back(d: Tensor, weight: Tensor) -> Tensor:
    """d W, (M, I)."""
    x = d.new_empty(len(d), weight.shape[1])
    project_back_into(x, d, weight)
    return x


def project_back_into(x: Tensor, d: Tensor, weight: Tensor, add: bool = False) -> None:
    """x (M, I) = d W, or += with `add`."""
    multiply(d, weight.t(), x, add=add)


def add_outer(into: Tensor, d: Tensor, v: Tensor) -> None:
    """into (G, I) += d^T v. torch's matmul, on a GPU cuBLAS's: nothing that rewinding reads depends on it."""
    into.addmm_(d.t(), v)
