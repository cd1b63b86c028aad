"""Matmuls whose factors are read with fewer bits, for what rewinding does not read: a readout's.

bfloat16 keeps 8 binary digits of a factor, float16 and TF32 keep 11; sums are float32's. A GPU's tensor cores take such
factors in a fraction of the time. On a CPU factors are rounded and then multiplied in float32: the same numbers but for
the order of sums, and no time saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from revtune.reversible.kernel.matmuls import Products, as_rows
from revtune.reversible.own_pages import Room

Precision = Literal["tf32", "bfloat16", "float16"]

MOST_DOUBLINGS = 120
"""Powers of two by which factors are scaled at most, so that the scale is a float32 itself."""


def check_precision(precision: object) -> Precision | None:
    """A precision, or None for float32's.

    Raises:
        ValueError: it is neither.
    """
    for known in get_args(Precision):
        if precision == known:
            return known
    if precision is None:
        return None
    raise ValueError(f'precision must be "tf32", "bfloat16", "float16" or None for float32, got {precision!r}')


class LoweredProducts(Products):
    """torch's matmuls of float32 tensors, whose factors are read in a lower precision.

    Args:
        precision: which one.
        like: a tensor of the dtype and on the device of all.

    Raises:
        ValueError: the tensor is not float32, or TF32 is asked for on another device than a GPU.
    """

    def __init__(self, precision: Precision, like: Tensor) -> None:
        check_precision(precision)
        if like.dtype != torch.float32:
            raise ValueError(f'precision="{precision}" lowers products of float32, got {like.dtype}; leave it at None')
        if precision == "tf32" and like.device.type != "cuda":
            raise ValueError(f'precision="tf32" is one of NVIDIA GPUs, got tensors on {like.device}; leave it at None')
        self._precision, self._on_gpu = precision, like.device.type == "cuda"

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        out: Tensor | None = None,
        packed: Tensor | None = None,
    ) -> Tensor:
        product = self._multiply(as_rows(x), weight.t()).view(*x.shape[:-1], len(weight))
        if bias is not None:
            product += bias
        return product if out is None else out.copy_(product)

    def back(self, grad: Tensor, weight: Tensor, room: Room | None = None) -> Tensor:
        return self._multiply(as_rows(grad), weight).view(*grad.shape[:-1], weight.shape[1])

    def add_back(self, into: Tensor, grad: Tensor, weight: Tensor) -> None:
        into += self.back(grad, weight)

    def add_outer(self, into: Tensor, grad: Tensor, value: Tensor) -> None:
        into += self._multiply(as_rows(grad).t(), as_rows(value))

    def _multiply(self, a: Tensor, b: Tensor) -> Tensor:
        if self._precision == "tf32":
            with _tensor_cores():
                return a @ b
        if self._precision == "bfloat16":
            return self._of_rounded(a.bfloat16(), b.bfloat16())
        # float16 has 5 bits of exponent: small gradients would become zeros, large weights infinite
        (a, doublings), (b, others) = _halved(a), _halved(b)
        return torch.ldexp(self._of_rounded(a, b), doublings + others)

    def _of_rounded(self, a: Tensor, b: Tensor) -> Tensor:
        """A product of 16-bit factors in float32."""
        return torch.mm(a, b, out_dtype=torch.float32) if self._on_gpu else a.float() @ b.float()


def _halved(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / 2^n in float16, such that no number is above 1, and n. Asks the device nothing."""
    doublings = torch.frexp(x.abs().amax())[1].clamp(-MOST_DOUBLINGS, MOST_DOUBLINGS)
    return torch.ldexp(x, -doublings).half(), doublings


@contextmanager
def _tensor_cores() -> Iterator[None]:
    """Within this block torch's matmuls on GPUs read TF32."""
    switch = torch.backends.cuda.matmul
    before, switch.fp32_precision = switch.fp32_precision, "tf32"
    try:
        yield
    finally:
        switch.fp32_precision = before
