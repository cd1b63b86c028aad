"""The squared norm of a network's weights as they respond to each example's hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.responses.responding import Responding


def weight_norm2(model: nn.Module) -> Tensor:
    """The squared norm of all parameters at each example's hyperparameters, for weight decay in a training loss.

    Row u of a responding weight is `W0[u] + s_u W1[u]`, with s = Q d, so that its squared norm is quadratic in s, and
    three scalars a row do for all examples::

        |W0[u]|^2 + 2 s_u <W0[u], W1[u]> + s_u^2 |W1[u]|^2

    A responding bias is `b0 + Q_b d`, a normalisation's weight `w + Q_w d`. Parameters without response count as they
    are, tied ones once, hyperparameters and the parameters W1 and Q of responses not at all.

    Args:
        model: any network, self-tuning or plain.

    Returns:
        Inside a pass, as in `train_loss`, (B,); outside one 0-d, at the current values.

    Raises:
        TypeError: a response layer of your own has a parameter by whose name one cannot tell what it is for.

    Example:
        >>> weight_norm2(nn.Linear(2, 1)).shape
        torch.Size([])
    """
    hypers = next((module.hypers for module in model.modules() if isinstance(module, Responding)), None)
    seen = {id(p) for module in model.modules() if isinstance(module, Hyperparameters) for p in module.parameters()}
    like = next((p for p in model.parameters() if id(p) not in seen), torch.zeros(()))
    total = like.new_zeros(())
    with torch.autocast(like.device.type, enabled=False):
        for layer in model.modules():
            if isinstance(layer, Responding):
                seen |= {id(p) for name, p in layer.named_parameters() if name.startswith("response_")}
                total = sum(_of_layer(layer, seen), total)
        for parameter in model.parameters():
            if id(parameter) not in seen:
                total = total + _square(parameter)
    if hypers is None or hypers.current is None:
        return total.reshape(())
    return total.expand(hypers.current.size)


def _of_layer(layer: Responding, seen: set[int]) -> Iterator[Tensor]:
    """The squared norms of a layer's responding parameters that have not been seen, (B,) or 0-d."""
    d = layer.hypers.current_departure()
    for first, second, scale in layer.responding_parameters():
        if id(first) not in seen:
            seen.add(id(first))
            yield _square(first) if d is None else _quadratic(first, second, d @ scale.T, layer)


def _quadratic(first: Tensor, second: Tensor | None, s: Tensor, layer: Responding) -> Tensor:
    """The squared norm of `first + s * second` for s of shape (B, U), shape (B,)."""
    if second is None:
        return (first + s).square().sum(1)
    inner_dim = 1 - layer.weight_unit_dim
    norms: Tensor = _QuadraticNorm.apply(layer.by_row(first), layer.by_row(second), s, inner_dim)
    return norms


class _QuadraticNorm(torch.autograd.Function):
    """The quadratic in s of `weight_norm2`, with a gradient that reads each weight once."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, s: Tensor, inner_dim: int) -> Tensor:
        """(B,), from W0 and W1, (U, I) if `inner_dim` is 1 and (I, U) if it is 0, and s (B, U)."""
        cross = torch.linalg.vecdot(first, second, dim=inner_dim)  # <W0[u], W1[u]>
        square = torch.linalg.vecdot(second, second, dim=inner_dim)  # |W1[u]|^2
        ctx.save_for_backward(first, second, s, cross, square)
        ctx.inner_dim = inner_dim
        return _square(first) + 2 * s @ cross + s.square() @ square

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of W0, W1 and s."""
        first, second, s, cross, square = ctx.saved_tensors
        by_s, by_s2 = (2 * (grad @ power).unsqueeze(ctx.inner_dim) for power in (s, s.square()))
        wants_first, wants_second, wants_s, _ = ctx.needs_input_grad
        return (
            torch.addcmul(2 * grad.sum() * first, second, by_s) if wants_first else None,
            torch.addcmul(first * by_s, second, by_s2) if wants_second else None,
            2 * grad[:, None] * torch.addcmul(cross, s, square) if wants_s else None,
            None,
        )


def _square(x: Tensor) -> Tensor:
    """The sum of squares, without a tensor of them."""
    return torch.dot(x.flatten(), x.flatten())
