"""The squared norm of a network's weights as they answer to each example's hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.responses.layers import ResponseEmbedding
from revtune.tuning.responses.responding import Responding

Answer = tuple[Tensor, Tensor | None, Tensor]


def weight_norm2(model: nn.Module) -> Tensor:
    """The squared norm of all parameters at each example's hyperparameters, for weight decay in a training loss.

    Row u of a responding weight is `W0[u] + s_u W1[u]`, with s = Q d, so that its squared norm is quadratic in s, and
    three scalars a row do for all examples::

        |W0[u]|^2 + 2 s_u <W0[u], W1[u]> + s_u^2 |W1[u]|^2

    A responding bias is `b0 + Q_b d`, a normalisation's weight `w + Q_w d`. Parameters without response count as they
    are, tied ones once, hyperparameters and the parameters W1 and Q of responses not at all.

    Args:
        model: perhaps as `self_tuning` gives it.

    Returns:
        Inside a pass, as in `train_loss`, (B,); outside one 0-d, at the current values.

    Raises:
        TypeError: the parameters of a response layer of one's own have other names.

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
    """The squared norms of a layer's parameters that have not been seen, (B,) or 0-d."""
    d = layer.hypers.delta()
    for first, second, scale in answers(layer):
        if id(first) not in seen:
            seen.add(id(first))
            yield _square(first) if d is None else _quadratic(first, second, d @ scale.T, layer)


def answers(layer: Responding) -> Iterator[Answer]:
    """Parameters of a layer with what they answer by: W0, W1 and Q, where `W0 + (Q d) * W1` by output unit.

    W1 is None for a number a unit, `b0 + Q d`. They belong together by name: `weight_ih_l0`, `response_weight_ih_l0`
    and `response_scale_ih_l0`; `bias` and `response_shift`, of recurrent layers `bias_ih_l0` and `response_shift_l0`.

    Raises:
        TypeError: a part of the response belongs to nothing by its name.
    """
    own = {name: p for name, p in layer._parameters.items() if p is not None}
    left = {name for name in own if name.startswith("response_")}
    for name, first in own.items():
        kind, suffix = ("weight", name[6:]) if name.startswith("weight") else ("bias", name[4:].replace("_ih", ""))
        second, scale = f"response_weight{suffix}", f"response_{'scale' if kind == 'weight' else 'shift'}{suffix}"
        if name.startswith(kind) and scale in own:
            left -= {second, scale} if kind == "weight" else {scale}
            yield first, own.get(second) if kind == "weight" else None, own[scale]
    if left:
        raise TypeError(f"weight_norm2 cannot tell what {', '.join(sorted(left))} of {type(layer).__name__} belong to")


def _quadratic(first: Tensor, second: Tensor | None, s: Tensor, layer: Responding) -> Tensor:
    """The squared norm of `first + s * second` for s of shape (B, U), shape (B,)."""
    if second is None:
        return (first + s).square().sum(1)
    inner = 0 if isinstance(layer, ResponseEmbedding) else 1
    found: Tensor = _Rows.apply(first.flatten(1), second.flatten(1), s, inner)
    return found


class _Rows(torch.autograd.Function):
    """The quadratic of `weight_norm2` over rows, or columns, with a gradient that reads each weight once."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, s: Tensor, inner: int) -> Tensor:
        """(B,), from weights (U, inner) for inner = 1, (inner, U) for 0, and s (B, U)."""
        mixed, last = (torch.linalg.vecdot(one, second, dim=inner) for one in (first, second))
        ctx.save_for_backward(first, second, s, mixed, last)
        ctx.inner = inner
        return _square(first) + 2 * s @ mixed + s.square() @ last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """To both weights and s."""
        first, second, s, mixed, last = ctx.saved_tensors
        one, two = (2 * (grad @ power).unsqueeze(ctx.inner) for power in (s, s.square()))
        wanted = ctx.needs_input_grad
        return (
            torch.addcmul(2 * grad.sum() * first, second, one) if wanted[0] else None,
            torch.addcmul(first * one, second, two) if wanted[1] else None,
            2 * grad[:, None] * torch.addcmul(mixed, s, last) if wanted[2] else None,
            None,
        )


def _square(x: Tensor) -> Tensor:
    """The sum of squares, without a tensor of them."""
    return torch.dot(x.flatten(), x.flatten())
