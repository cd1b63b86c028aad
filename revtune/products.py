"""The matmuls over whole chunks, through oneDNN where it is there: on CPUs it is often half as fast again.

torch's own layers use it for nn.LSTM; F.linear in float32 does not. Everything else goes through torch as usual.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS = 320
"""Rows of a gradient that are computed before they are added: a small part of a large weight, for memory's sake."""
_LEAST = 2**18
"""Products of fewer multiplications are not worth the detour."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b` for x (..., I), W (G, I), b (G,)."""
    if not _through_onednn(x.numel() * weight.shape[0], x):
        return F.linear(x, weight, bias)
    return _onednn(x, weight.contiguous(), bias)


def times(grad: Tensor, weight: Tensor) -> Tensor:
    """`d W` for d (..., G), W (G, I)."""
    return _onednn(grad, weight.contiguous().t(), None) if _through_onednn(grad.numel() * weight.shape[1], grad) else grad @ weight


def add_outer(into: Tensor, grad: Tensor, value: Tensor) -> None:
    """Add `d^T v` to W (G, I), for d (N, G) and v (N, I)."""
    if not _through_onednn(grad.numel() * value.shape[1], grad):
        into.addmm_(grad.t(), value)
        return
    dense = value.contiguous().t()  # oneDNN has no fast path for a second factor with gaps between its rows
    for first in range(0, into.shape[0], _ROWS):
        rows = slice(first, first + _ROWS)
        into[rows].add_(_onednn(grad[:, rows].t(), dense, None))


def _through_onednn(multiplications: int, like: Tensor) -> bool:
    return (
        multiplications >= _LEAST
        and like.dtype == torch.float32
        and like.device.type == "cpu"
        and not torch.is_grad_enabled()
        and torch._C._get_mkldnn_enabled()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
