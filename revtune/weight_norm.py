"""The squared norm of a network's weights as they answer to each example's hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from revtune.hyperparameters import Hyperparameters
from revtune.response import Responding, ResponseEmbedding

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
        TypeError: a response layer does not tell its weights.

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

    W1 is None for a number a unit, `b0 + Q d`. A layer that keeps its own under other names tells them by a method of
    this name.

    Raises:
        TypeError: it has none.
    """
    own = getattr(layer, "answers", None)
    if own is not None:
        yield from own()
    elif not hasattr(layer, "response_scale"):
        raise TypeError(f"weight_norm2 cannot tell the weights of {type(layer).__name__}, which has no method answers")
    else:
        yield layer.weight, layer.response_weight, layer.response_scale
        if layer.bias is not None and layer.response_shift is not None:
            yield layer.bias, None, layer.response_shift


def _quadratic(first: Tensor, second: Tensor | None, s: Tensor, layer: Responding) -> Tensor:
    """The squared norm of `first + s * second` for s of shape (B, U), shape (B,)."""
    if second is None:
        return (first + s).square().sum(1)
    if not isinstance(layer, ResponseEmbedding):
        first, second = first.flatten(1).T, second.flatten(1).T
    mixed, last = torch.linalg.vecdot(first, second, dim=0), torch.linalg.vecdot(second, second, dim=0)
    return _square(first) + 2 * s @ mixed + s.square() @ last


def _square(x: Tensor) -> Tensor:
    """The sum of squares, without a tensor of them."""
    return torch.dot(x.flatten(), x.flatten())
