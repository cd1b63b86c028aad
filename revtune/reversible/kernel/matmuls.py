"""The matmuls over whole chunks: torch's, and those of the native kernel.

The kernel's have one fixed order of summation, so that their bits depend on neither the number of rows nor threads,
make no copy of a weight unless asked for it, and are as fast as the libraries' at the sizes of recurrent nets.

Shapes: N positions, I inputs, G outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from revtune.reversible.kernel import backend
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
        return F.linear(x, weight, bias)

    def pack(self, weight: Tensor) -> Tensor | None:
        """A copy of a weight laid out for `linear`, to be read many times; None where it would not help."""
        return None

    def back(self, grad: Tensor, weight: Tensor, room: Room | None = None) -> Tensor:
        """`d W` for d (..., G), W (G, I); it may lie in a room."""
        return grad @ weight

    def add_outer(self, into: Tensor, grad: Tensor, value: Tensor) -> None:
        """Add `d^T v` to W (G, I), for d (N, G) and v (N, I)."""
        into.addmm_(grad.t(), value)


class NativeProducts(Products):
    """The kernel's matmuls: float32, CPU, no gradient of their own."""

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
        torch.ops.revtune.project_into(out.view(-1, weight.shape[0]), _rows(x), weight.contiguous(), bias, packed)
        return out

    def pack(self, weight: Tensor) -> Tensor | None:
        if weight.nbytes > LARGEST_PACKED:
            return None
        packed: Tensor = torch.ops.revtune.pack_projection(weight.contiguous())
        return packed

    def back(self, grad: Tensor, weight: Tensor, room: Room | None = None) -> Tensor:
        shape, rows = (*grad.shape[:-1], weight.shape[1]), _rows(grad)
        if room is None:
            product: Tensor = torch.ops.revtune.project_back(rows, weight.contiguous())
            return product.view(shape)
        into = room.tensor(weight, shape)
        torch.ops.revtune.project_back_into(into.view(-1, weight.shape[1]), rows, weight.contiguous())
        return into

    def add_outer(self, into: Tensor, grad: Tensor, value: Tensor) -> None:
        torch.ops.revtune.add_outer(into, _rows(grad), _rows(value))


def products_for(like: Tensor) -> Products:
    """The kernel's matmuls for tensors like this one where it is there, else torch's."""
    if like.device.type == "cpu" and like.dtype == torch.float32 and backend.load():
        return NativeProducts()
    return Products()


def _rows(x: Tensor) -> Tensor:
    """(..., F) as (N, F) with dense rows."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
