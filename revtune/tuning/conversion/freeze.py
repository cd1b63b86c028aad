"""Self-tuning networks made plain again."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from revtune.tuning.conversion.bypasses import shared_weights
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.regularizers.regularizer import TunedRegularizer
from revtune.tuning.responses.responding import Responding


def frozen(model: nn.Module) -> nn.Module:
    """A plain copy of a tuned network, with its responses folded into its weights at the present hyperparameters.

    It needs nothing of revtune, and in evaluation mode gives the same outputs. Where a module of your own held the
    `Hyperparameters` as an attribute, the copy has a dictionary of their values.

    Args:
        model: as `self_tuning` gives it, perhaps trained.

    Raises:
        ValueError: it is not self-tuning, or since its conversion a layer's weight has become a computed one, as by
            pruning.
    """
    if not isinstance(getattr(model, "hypers", None), Hyperparameters):
        raise ValueError(f"frozen wants a network that self_tuning converted, got {type(model).__name__}")
    _check_weights(model)
    plain = copy.deepcopy(model, _computed(model))
    hypers = plain.hypers
    assert isinstance(hypers, Hyperparameters)
    d = hypers.current_departure()
    if d is not None:  # else no weight changes, and tied ones stay tied
        _untie(plain)
    for module in list(plain.modules()):
        if isinstance(module, Responding):
            module.become_plain() if d is None else module.fold(d[0])
        elif isinstance(module, TunedRegularizer):
            module.become_plain()
    for name in ("hypers", "conversion"):
        plain.__dict__.pop(name, None)
    for module in plain.modules():
        for name, child in list(module._modules.items()):
            if isinstance(child, Hyperparameters):
                del module._modules[name]
                module.__dict__[name] = child.values()
    return plain


def _computed(model: nn.Module) -> dict[int, Any]:
    """Copies of computed tensors that modules hold, which torch does not copy: weights of the old weight_norm."""
    held = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return {id(value): value.detach().clone() for value in held if not value.is_leaf}


def _check_weights(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, Responding) and not module.weights_are_own():
            raise ValueError(f"{name or 'the network'} cannot be made plain: since it was converted its weight is "
                             "computed from others, as by a parametrization")  # fmt: skip


def _untie(net: nn.Module) -> None:
    """Give response layers weights of their own, so that folding changes no other module's."""
    shared = shared_weights(net)
    for module in net.modules():
        weight = module._parameters.get("weight") if isinstance(module, Responding) else None
        if weight is not None and id(weight) in shared:
            module.register_parameter("weight", nn.Parameter(weight.detach().clone(), weight.requires_grad))
