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
        loss: its value, 0-d; or losses of rows, (B,), of which the gradients are those of their mean.
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
        factor, grads = _factor(ctx.what, grad) * ctx.scale, ctx.grads
        if graph_retained():
            return (None, None, None, None, *(kept * factor for kept in grads))
        ctx.grads = None
        # In place: a second copy of a large weight's gradient is never made
        return (None, None, None, None, *(given.mul_(factor) for given in grads))


def _factor(what: str, grad: Tensor) -> float:
    """What gradients are multiplied with, for this gradient of the loss, or of the losses of rows.

    Raises:
        ValueError: it is not the same for all rows.
    """
    if not grad.dim():
        return float(grad)
    if not bool((grad == grad[0]).all()):
        raise ValueError(
            f"{what}: the losses of all rows must have the same gradient, as those of losses.mean() and losses.sum() "
            "have, since theirs were computed while rewinding and rows cannot be weighed afterwards, got "
            f"{float(grad.min()):g} to {float(grad.max()):g}; weigh the losses of positions in the readout instead"
        )
    return float(grad[0] / grad.new_tensor(1.0 / len(grad)))  # exactly 1 for the gradient of losses.mean()
