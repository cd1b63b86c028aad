"""What a `Tuner` accepts: settings, networks and batches, each refused with a sentence of its own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.responses.responding import Responding
from revtune.tuning.trees import tensors

INTEGERS = {"warmup": 0, "ratio": 1, "accumulate": 1, "seed": None}
"""Settings that are integers, and the least that each may be."""


CALLED = ("train_loss", "valid_loss", "predict", "optimizer", "hyper_optimizer", "autocast", "size")


def check_settings(settings: dict[str, Any]) -> None:
    """Refuse arguments of a `Tuner` that cannot be.

    Raises:
        ValueError: names the first, what was expected and what was given.
    """
    for name in ("optimizer", "hyper_optimizer"):
        if isinstance(settings[name], Optimizer):
            raise ValueError(
                f"{name} must be a factory, such as lambda params: torch.optim.SGD(params, 0.1), got a "
                f"{type(settings[name]).__name__}: one built before the conversion holds none of the responses"
            )
    for name in CALLED:
        if not (callable(settings[name]) or (settings[name] is None and name in ("predict", "size"))):
            raise ValueError(f"{name} must be a function, got {settings[name]!r:.60}")
    if hasattr(type(settings["autocast"]), "__enter__"):
        made = f"lambda: {type(settings['autocast']).__name__}(...)"
        raise ValueError(f"autocast must be a function that makes a context, such as {made}, got the context itself")
    for name, least in INTEGERS.items():
        value = settings[name]
        if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
            wanted = "an integer" if least is None else f"an integer of at least {least}"
            raise ValueError(f"{name} must be {wanted}, got {value!r}")
    entropy, clip = settings["entropy"], settings["clip"]
    if not (_is_number(entropy) and 0 <= entropy < math.inf):
        raise ValueError(f"entropy must be a finite number of at least 0, got {entropy!r}")
    if clip is not None and not (_is_number(clip) and clip > 0):
        raise ValueError(f"clip must be a positive number, or None for no limit, got {clip!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_predict(predict: Callable[..., Any] | None, model: nn.Module, carry: bool) -> None:
    """Refuse a prediction that does not take what it will be given.

    Raises:
        ValueError: says what that is.
    """
    if predict is not None and not _takes(predict, 2 + carry):
        wanted = "a model, a batch and, with carry=True, a state" if carry else "a model and a batch"
        raise ValueError(f"predict must take {wanted}, got one that takes {inspect.signature(predict)}")
    if predict is None and carry and not _takes(model.forward, 2):
        takes = inspect.signature(model.forward)
        raise ValueError(f"with carry=True the network must take an input and a state, it takes {takes}; give predict=")


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether so many arguments can be given by their places, as far as this can be told."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def check_dtypes(model: nn.Module, hypers: Hyperparameters) -> None:
    """Refuse a network of low precision, or one that responds in another precision than its hyperparameters have.

    Raises:
        ValueError: names the first parameter.
    """
    for name, parameter in [*model.named_parameters(), ("what holds the hyperparameters", hypers.raw)]:
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} must be float32 or float64, got {parameter.dtype}; give Tuner autocast= instead")
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False) if isinstance(module, Responding) else ():
            if parameter.dtype != hypers.raw.dtype:
                raise ValueError(
                    f"{name}.{own} is {parameter.dtype} and hyperparameters are {hypers.raw.dtype}: what responds must "
                    f"be of one dtype with them; self_tuning(leave=[{name!r}]) lets this layer be"
                )


def check_devices(model: nn.Module, hypers: Hyperparameters) -> None:
    """Refuse a network without numbers, or whose hyperparameters are on another device than all of it.

    Raises:
        ValueError: names the devices.
    """
    devices = {parameter.device for parameter in model.parameters()}
    if any(device.type == "meta" for device in devices):
        raise ValueError("the network is on the meta device, where tensors have no numbers; to_empty and load it first")
    if hypers.raw.device not in devices:
        there = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"hyperparameters are on {hypers.raw.device}, the network on {there}; move both")


def batch_size(model: nn.Module) -> Callable[[Any], int]:
    """What tells B of a batch by its first tensor."""
    conversion: Any = model.conversion

    def size(batch: Any) -> int:
        found = tensors(batch, floating=False)
        if not found:
            raise ValueError("the batch holds no tensor to tell its size by; give Tuner size=")
        if any(one.device.type == "meta" for one in found):
            raise ValueError("the batch is on the meta device, where tensors have no numbers")
        if found[0].dim() <= conversion.batch_dim or found[0].shape[conversion.batch_dim] == 0:
            shape = tuple(found[0].shape)
            raise ValueError(f"the batch has no examples: its first tensor is {shape}, examples in dimension "
                             f"{conversion.batch_dim}")  # fmt: skip
        return found[0].shape[conversion.batch_dim]

    return size


def of_first(model: nn.Module, batch: Any, *state: Any) -> Any:
    """The prediction of a network that takes the first part of a batch."""
    if isinstance(batch, Tensor) or not isinstance(batch, tuple | list):
        kind = type(batch).__name__
        raise ValueError(f"a batch must be a tuple whose first part the network takes, got {kind}; give Tuner predict=")
    return model(batch[0], *state)


def check_method(model: nn.Module, hypers: Hyperparameters, method: str) -> None:
    """Refuse a network whose responses were learnt by the other method, which would now mean something else.

    Raises:
        ValueError: it is one.
    """
    learnt = any(
        bool((p != 0).any())
        for name, p in model.named_parameters()
        if name.rpartition(".")[2].startswith(("response_scale", "response_shift"))
    )
    if learnt and hypers.centred != (method == "delta"):
        other = "delta" if hypers.centred else "stn"
        raise ValueError(
            f"the network's responses were learnt by method {other!r}, so the method must be that again, got {method!r}"
        )
