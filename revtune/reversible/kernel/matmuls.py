"""The matmuls over whole chunks: torch's, and those of kernels.

A kernel's have one fixed order of summation, so that their bits depend on neither the number of rows nor threads,
make no copy of a weight unless asked for it, and are as fast as the libraries' at the sizes of recurrent nets.

Shapes: N positions, I inputs, G outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from revtune.reversible.cells.cell import Response
from revtune.reversible.kernel import backend
from revtune.reversible.kernel.engine import Engine, operators
from revtune.reversible.own_pages import Room

LARGEST_PACKED = 2**20
"""Bytes of a weight up to which it is packed. It makes inference of narrow layers some 3% faster; the copy of a larger
weight is not worth its memory."""


class Products:
    """torch's matmuls, on any device and in any dtype."""

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        out: Tensor | None = None,
        packed: Tensor | None = None,
    ) -> Tensor:
        """`x W^T + b` for x (..., I), W (G, I), b (G,).

        The result may stand in `out` (..., G), which is dense, or in a new tensor; `packed` is W as `pack` returned it.
        """
        if out is None:
            return F.linear(x, weight, bias)
        rows = out.view(-1, len(weight))
        if bias is None:
            torch.mm(as_rows(x), weight.t(), out=rows)
        else:
            torch.addmm(bias, as_rows(x), weight.t(), out=rows)
        return out

    def answering(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        response: Response,
        *,
        out: Tensor | None = None,
        packed: Tensor | None = None,
        products: Tensor | None = None,
    ) -> Tensor:
        """`x W^T + b + s * (x V^T)` for x (K, B, I), b (G,) or (B, G), and a response (V, s).

        `out` and `packed` are as in `linear`; `x V^T` may stand in `products`, likewise.
        """
        if bias is not None and bias.dim() == 2:
            projected = self.linear(x, weight).add_(bias)
        else:
            projected = self.linear(x, weight, bias)
        extra, scale = response
        return projected + scale * self.linear(x, extra)

    def add_answer(self, y: Tensor, products: Tensor, scale: Tensor, bias: Tensor | None, index: Tensor) -> None:
        """Add to positions y (N, G) each one's bias and its `s * products`.

        Args:
            y: `x W^T`.
            products: `x V^T`, (N, G).
            scale, bias: s and the biases of rows, (B, G).
            index: the row of each position, (N,).
        """
        if bias is not None:
            y.add_(bias[index])
        y.addcmul_(scale[index], products)

    def answer_back(
        self, products: Tensor, grad: Tensor, scale: Tensor, index: Tensor, dscale: Tensor, dbias: Tensor, *,
        scaled: bool,
    ) -> None:  # fmt: skip
        """From the gradient (N, G) of what `add_answer` gave: those of s and of the biases, and s times it.

        Args:
            products: as there; if `scaled`, `s * grad` takes their place.
            grad: (N, G).
            scale, index: as there.
            dscale, dbias: where the gradients of s and of the biases are added up, (B, G).
            scaled: whether `s * grad` is wanted.
        """
        dscale.index_add_(0, index, products * grad)
        dbias.index_add_(0, index, grad)
        if scaled:
            torch.mul(scale[index], grad, out=products)

    def pack(self, weight: Tensor) -> Tensor | None:
        """A copy of a weight laid out for `linear`, to be read many times; None where it would not help."""
        return None

    def back(self, grad: Tensor, weight: Tensor, room: Room | None = None) -> Tensor:
        """`d W` for d (..., G), W (G, I); it may lie in a room."""
        if room is None:
            return grad @ weight
        into = room.tensor(weight, (*grad.shape[:-1], weight.shape[1]))
        torch.mm(as_rows(grad), weight.detach(), out=into.view(-1, weight.shape[1]))
        return into

    def add_back(self, into: Tensor, grad: Tensor, weight: Tensor) -> None:
        """Add `d W` to dense (..., I), for d (..., G), W (G, I)."""
        torch.add(into, grad @ weight, out=into)

    def add_outer(self, into: Tensor, grad: Tensor, value: Tensor) -> None:
        """Add `d^T v` to W (G, I), for d (N, G) and v (N, I)."""
        into.addmm_(grad.t(), value)


class KernelProducts(Products):
    """A kernel's matmuls: float32, no gradient of their own.

    Args:
        engine: whose kernel.
    """

    def __init__(self, engine: Engine = "native") -> None:
        self._engine = engine

    @property
    def _operators(self) -> Any:
        """The kernel's operators; looked up, as they cannot be copied with this."""
        return operators(self._engine)

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        out: Tensor | None = None,
        packed: Tensor | None = None,
    ) -> Tensor:
        if out is None:
            out = x.new_empty(*x.shape[:-1], weight.shape[0])
        self._operators.project_into(out.view(-1, weight.shape[0]), as_rows(x), weight.contiguous(), bias, packed)
        return out

    def answering(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        response: Response,
        *,
        out: Tensor | None = None,
        packed: Tensor | None = None,
        products: Tensor | None = None,
    ) -> Tensor:
        own, (extra, scale) = bias is not None and bias.dim() == 2, response
        projected = self.linear(x, weight, None if own else bias, out=out, packed=packed)
        products = self.linear(x, extra, out=products)
        self._operators.add_answer(as_rows(projected), products, scale, bias if own else None)
        return projected

    def add_answer(self, y: Tensor, products: Tensor, scale: Tensor, bias: Tensor | None, index: Tensor) -> None:
        self._operators.add_answer(y, products, scale, bias, index)

    def answer_back(
        self, products: Tensor, grad: Tensor, scale: Tensor, index: Tensor, dscale: Tensor, dbias: Tensor, *,
        scaled: bool,
    ) -> None:  # fmt: skip
        self._operators.answer_back(products, grad, scale, index, dscale, dbias, scaled)

    def scale_back(self, products: Tensor, grad: Tensor, scale: Tensor, sum: Tensor | None, *, scaled: bool) -> None:
        """From the gradient (K, B, G) of products to which `s * products` was added: that of s, and s times it.

        Args:
            products: V's products, (K, B, G); if `scaled`, `s * grad` takes their place.
            grad: of the same shape.
            scale: s, (B, G).
            sum: where the gradient of s is added up, (B, G), or None.
            scaled: whether `s * grad` is wanted.
        """
        self._operators.scale_back(products, as_rows(grad), scale, sum, scaled)

    def add_back(self, into: Tensor, grad: Tensor, weight: Tensor) -> None:
        rows, weight = into.view(-1, weight.shape[1]), weight.contiguous()
        self._operators.project_back_into(rows, as_rows(grad), weight, True)

    def pack(self, weight: Tensor) -> Tensor | None:
        if self._engine == "triton" or weight.nbytes > LARGEST_PACKED:
            return None
        packed: Tensor = self._operators.pack_projection(weight.contiguous())
        return packed

    def back(self, grad: Tensor, weight: Tensor, room: Room | None = None) -> Tensor:
        shape, rows = (*grad.shape[:-1], weight.shape[1]), as_rows(grad)
        if room is None:
            product: Tensor = self._operators.project_back(rows, weight.contiguous())
            return product.view(shape)
        into = room.tensor(weight, shape)
        self._operators.project_back_into(into.view(-1, weight.shape[1]), rows, weight.contiguous())
        return into

    def add_outer(self, into: Tensor, grad: Tensor, value: Tensor) -> None:
        self._operators.add_outer(into, as_rows(grad), as_rows(value))


def products_for(like: Tensor) -> Products:
    """The kernel's matmuls for tensors like this one where it is there, else torch's."""
    if like.device.type == "cpu" and like.dtype == torch.float32 and backend.load():
        return KernelProducts()
    return Products()


def as_rows(x: Tensor) -> Tensor:
    """(..., F) as (N, F) with dense rows."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
