"""Dropped weights that are not written out: their mask is kept, a byte a weight, and the kernel reads weights under it.

Beside a weight, a copy of it under its mask and that mask in floats would take two of its size, a response's weight as
much. Every number is what weight times mask is, to the last bit.

Shapes: G rows, N columns of a recurrent weight.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from revtune.reversible.own_pages import in_own_pages


class WeightMask(NamedTuple):
    """Which numbers of a weight are kept, and what those are multiplied with.

    Attributes:
        kept: 1 for those that are, (G, N), uint8.
        times: 1 / (1 - p).
    """

    kept: Tensor
    times: float

    @classmethod
    def of(cls, mask: Tensor) -> WeightMask:
        """The mask of dropout that has these factors, 0 or one positive number, (G, N)."""
        return cls(mask.ne(0).view(torch.uint8), float(mask.max()))

    def applied(self, weight: Tensor, rows: slice = slice(None)) -> Tensor:
        """Rows of a weight under the mask."""
        weight = weight.detach()[rows]
        return torch.mul(weight, self.kept[rows], out=in_own_pages(weight, tuple(weight.shape))).mul_(self.times)

    def later(self, weight: Tensor) -> Tensor:
        """A weight (G, N) as it is, whose gradient is that of the weight under the mask."""
        read: Tensor = _Later.apply(weight, self)
        return read


class _Later(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: WeightMask) -> Tensor:
        ctx.mask = mask
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (grad * ctx.mask.kept).mul_(ctx.mask.times), None
