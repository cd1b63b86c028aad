"""A loss whose gradients are known as soon as it is: backward scales them and gives them away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from revtune.reversible.transforms import graph_retained, refuse_batches, refuse_double_backward


def with_gradients(
    what: str, loss: Tensor, tensors: Sequence[Tensor], grads: Sequence[Tensor], scale: float = 1.0
) -> Tensor:
    """A loss that is differentiable to these tensors.

    Args:
        what: what errors call it.
        loss: its value, 0-d.
        tensors: what it depends on.
        grads: its gradients, one a tensor, before they are scaled; theirs no longer once backward has run.
        scale: a factor of all gradients.
    """
    scaled: Tensor = _KnownGradients.apply(what, loss, list(grads), scale, *tensors)
    return scaled


class _KnownGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, what: str, loss: Tensor, grads: list[Tensor], scale: float, *tensors: Tensor) -> Tensor:
        ctx.what, ctx.grads, ctx.scale = what, grads, scale
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward(ctx.what)
        refuse_batches([grad])
        if ctx.grads is None:
            raise RuntimeError(
                f"{ctx.what}: backward a second time; the first call needs retain_graph=True to allow it"
            )
        factor, grads = float(grad) * ctx.scale, ctx.grads
        if graph_retained():
            return (None, None, None, None, *(kept * factor for kept in grads))
        ctx.grads = None
        # In place: a second copy of a large weight's gradient is never made
        return (None, None, None, None, *(given.mul_(factor) for given in grads))
