"""Which optimizers a `Tuner` accepts: those of just the parameters they were given, which use gradients alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from revtune.tuning.hypers.hyperparameters import Hyperparameters

DECAYS = ("weight_decay", "lambd")
"""Settings of a parameter group by which an optimizer pulls parameters to 0; `lambd` is that of ASGD."""


def checked(
    optimizer: Optimizer, base: list[nn.Parameter], added: list[nn.Parameter], hypers: Hyperparameters
) -> Optimizer:
    """An optimizer of weights and responses, checked.

    Raises:
        ValueError: it holds other parameters, or decays responses.
    """
    check_kind("optimizer", optimizer)
    own = {id(p) for p in [*base, *added]}
    held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    if held.keys() != own:
        known = {id(hypers.raw): "the hyperparameters", id(hypers.spread): "their scales"}
        others = [known.get(key, f"one of shape {tuple(p.shape)}") for key, p in held.items() if key not in own]
        which = f" ({', '.join(others[:3])}{', ...' if others[3:] else ''})" if others else ""
        lacks = f"it lacks {len(own - held.keys())} of them and holds {len(others)} others{which}"
        raise ValueError(
            f"the optimizer must hold the model's {len(own)} parameters, but {lacks}; give a factory that makes it "
            "from the groups it is handed"
        )
    check_decay(optimizer, added)
    return optimizer


def checked_hyper(optimizer: Optimizer, own: list[nn.Parameter]) -> Optimizer:
    """An optimizer of hyperparameters and scales, checked.

    Raises:
        ValueError: it holds other parameters, or decays hyperparameters.
    """
    check_kind("hyper_optimizer", optimizer)
    if {id(p) for group in optimizer.param_groups for p in group["params"]} != {id(p) for p in own}:
        raise ValueError("hyper_optimizer must make its optimizer from the groups it is handed, it holds others")
    check_hyper_decay(optimizer)
    return optimizer


def check_kind(name: str, optimizer: Any) -> None:
    """Refuse what is no optimizer, and an optimizer that needs more than gradients for a step.

    Raises:
        ValueError: names its class.
    """
    kind = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"{name} must make a torch.optim.Optimizer, it made a {kind}")
    parameters = inspect.signature(optimizer.step).parameters.values()
    if any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise ValueError(f"{name} must make one that steps by gradients, but {kind} needs a closure to compute losses")


def check_decay(optimizer: Optimizer, added: Iterable[nn.Parameter]) -> None:
    """Refuse an optimizer that decays responses; settings of its groups may have changed since it was made.

    Raises:
        ValueError: it does.
    """
    decaying = [(group, name) for group in optimizer.param_groups for name in DECAYS if group.get(name)]
    responses = {id(p) for p in added} if decaying else set()
    for group, name in decaying:
        if any(id(p) in responses for p in group["params"]):
            raise ValueError(
                f"the optimizer decays responses by {name}={group[name]}, which pulls them to 0; keep the parameter "
                f"groups apart as they were handed over, {name} of the second 0"
            )


def check_hyper_decay(optimizer: Optimizer) -> None:
    """Refuse an optimizer that decays hyperparameters; settings of its groups may have changed since it was made.

    Raises:
        ValueError: it does.
    """
    for name in DECAYS:
        if decays := {group[name] for group in optimizer.param_groups if group.get(name)}:
            raise ValueError(
                f"hyper_optimizer decays hyperparameters by {name}={max(decays)}, which pulls rates to one half; it "
                "must be 0"
            )
