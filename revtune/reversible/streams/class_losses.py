"""The cross entropy of an ordinary readout, whose tensors as wide as a vocabulary lie in rooms.

Torch makes three of them anew for each block: logits, their log softmax, and the gradient. C's heap keeps holes of
their size, which measured more than all that a reversible layer takes.

Shapes: N positions, V classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from revtune.reversible.own_pages import Room


class BlockRooms:
    """Where the largest tensors of a readout's block lie, used again by the next block.

    Attributes:
        logits: what a linear layer gives, (N, V).
        log_softmax: of the logits.
        dlogits: their gradient.
        dinput: the gradient of what a linear layer is given.
    """

    def __init__(self) -> None:
        self.logits, self.log_softmax, self.dlogits, self.dinput = Room(), Room(), Room(), Room()


def cross_entropy(
    rooms: BlockRooms,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor | None:
    """`F.cross_entropy` in rooms; None where it is asked for more than classes (N,) of logits (N, V)."""
    more = weight is not None or size_average is not None or reduce is not None or label_smoothing
    if more or reduction not in ("none", "sum", "mean"):
        return None
    shapes = input.dim() == 2 and target.shape == input.shape[:1] and target.dtype == torch.int64
    if not shapes or not input.is_floating_point() or not (torch.is_grad_enabled() and input.requires_grad):
        return None
    counted = target != ignore_index
    losses: Tensor = _Losses.apply(input, target, counted, rooms)[0]
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / counted.sum()


class _Losses(torch.autograd.Function):
    """The loss of each position, (N,), 0 where it does not count; the log softmax, by which gradients have a graph."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, counted: Tensor, rooms: BlockRooms) -> tuple[Tensor, Tensor]:
        shape = tuple(logits.shape)
        log_softmax = rooms.log_softmax.tensor(logits, shape)
        torch.ops.aten._log_softmax.out(logits, 1, False, out=log_softmax)
        index = torch.where(counted, target, 0).unsqueeze(1)
        ctx.save_for_backward(log_softmax, index, counted)
        ctx.set_materialize_grads(False)
        ctx.room = rooms.dlogits
        return torch.where(counted, -log_softmax.gather(1, index).squeeze(1), 0.0), log_softmax

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, dlog_softmax: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        log_softmax, index, counted = ctx.saved_tensors
        scale = None if grad is None else torch.where(counted, grad, 0.0).unsqueeze(1)
        if scale is None or dlog_softmax is not None or torch.is_grad_enabled():
            return _dlogits(log_softmax, index, scale, dlog_softmax), None, None, None
        dlogits = ctx.room.tensor(log_softmax, tuple(log_softmax.shape))
        torch.exp(log_softmax, out=dlogits).mul_(scale).scatter_add_(1, index, -scale)
        return dlogits, None, None, None


def _dlogits(log_softmax: Tensor, index: Tensor, scale: Tensor | None, dlog_softmax: Tensor | None) -> Tensor | None:
    """The gradient of logits, whose own gradient the caller may take, from those of losses and log softmax."""
    if scale is not None:
        of_losses = torch.zeros_like(log_softmax).scatter(1, index, -scale)
        dlog_softmax = of_losses if dlog_softmax is None else dlog_softmax + of_losses
    if dlog_softmax is None:
        return None
    return dlog_softmax - log_softmax.exp() * dlog_softmax.sum(1, keepdim=True)
