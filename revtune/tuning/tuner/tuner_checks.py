"""What a `Tuner` accepts: settings, networks and batches, each refused with a sentence of its own.

A check of a setting returns it, so that a tuner checks settings where it stores them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import is_number
from revtune.tuning.responses.responding import Responding
from revtune.tuning.trees import tensors

F = TypeVar("F", bound=Callable[..., Any])

LEARNT = {False: 'method="stn"', True: 'method="delta", or "stn" with centred=True'}
"""What learns responses that count from 0, and from the current hyperparameters."""


def integer(name: str, value: int, least: int | None = None) -> int:
    """An integer, of at least so much.

    Raises:
        ValueError: it is none, or less.
    """
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        expected = "an integer" if least is None else f"an integer of at least {least}"
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return value


def entropy_weight(value: float) -> float:
    """A weight of the entropy.

    Raises:
        ValueError: it is negative or not finite.
    """
    if not (is_number(value) and 0 <= value < math.inf):
        raise ValueError(f"entropy must be a finite number of at least 0, got {value!r}")
    return value


def clip_norm(value: float | None) -> float | None:
    """A largest norm of gradients.

    Raises:
        ValueError: it is not positive.
    """
    if value is not None and not (is_number(value) and value > 0):
        raise ValueError(f"clip must be a positive number, or None for no limit, got {value!r}")
    return value


def function(name: str, value: F) -> F:
    """A function.

    Raises:
        ValueError: it cannot be called.
    """
    if not callable(value):
        raise ValueError(f"{name} must be a function, got {value!r:.60}")
    return value


def given(name: str, value: F | None) -> F:
    """A function that must be given.

    Raises:
        ValueError: it is missing, or cannot be called.
    """
    if value is None:
        raise ValueError(f"{name} must be a function, got None; a streamed loss is given by stream instead")
    return function(name, value)


def factory(name: str, value: F) -> F:
    """A function that makes an optimizer.

    Raises:
        ValueError: it cannot be called, or is an optimizer.
    """
    if isinstance(value, Optimizer):
        raise ValueError(
            f"{name} must be a factory, such as lambda params: torch.optim.SGD(params, 0.1), got a "
            f"{type(value).__name__}: one built before the conversion holds none of the responses"
        )
    return function(name, value)


def context_factory(value: F) -> F:
    """A function that makes an autocast context.

    Raises:
        ValueError: it cannot be called, or is a context; torch.autocast, which decorates functions, is both.
    """
    if hasattr(type(value), "__enter__"):
        made = f"lambda: {type(value).__name__}(...)"
        raise ValueError(f"autocast must be a function that makes a context, such as {made}, got the context itself")
    return function("autocast", value)


def prediction(predict: Callable[..., Any] | None, model: nn.Module, carry: bool) -> Callable[..., Any]:
    """What makes predictions: a function, or by default the network from the first part of a batch.

    Raises:
        ValueError: the function, or the network, does not take the arguments that it will be given.
    """
    if predict is not None and not _takes(function("predict", predict), 2 + carry):
        expected = "a model, a batch and, with carry=True, a state" if carry else "a model and a batch"
        raise ValueError(f"predict must take {expected}, got one that takes {inspect.signature(predict)}")
    if predict is None and carry and not _takes(model.forward, 2):
        takes = inspect.signature(model.forward)
        raise ValueError(f"with carry=True the network must take an input and a state, it takes {takes}; give predict=")
    return predict or _predict_from_first


def streaming(stream: F) -> F:
    """What says what is streamed.

    Raises:
        ValueError: it is no function of a model, a batch and hyperparameters.
    """
    if not _takes(function("stream", stream), 3):
        raise ValueError(f"stream must take a model, a batch and h, got one that takes {inspect.signature(stream)}")
    return stream


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether so many positional arguments can be given; True where a function does not show its signature."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _predict_from_first(model: nn.Module, batch: Any, *state: Any) -> Any:
    if isinstance(batch, Tensor) or not isinstance(batch, tuple | list):
        kind = type(batch).__name__
        raise ValueError(f"a batch must be a tuple whose first part the network takes, got {kind}; give Tuner predict=")
    return model(batch[0], *state)


def batch_size(size: Callable[[Any], int] | None, model: nn.Module) -> Callable[[Any], int]:
    """What gives B of a batch: a function, or by default that of its first tensor.

    Raises:
        ValueError: it is no function.
    """
    if size is not None:
        return function("size", size)
    conversion: Any = model.conversion
    return partial(_size_of_first_tensor, conversion.batch_dim)


def _size_of_first_tensor(batch_dim: int, batch: Any) -> int:
    found = tensors(batch, floating=False)
    if not found:
        raise ValueError("the batch holds no tensor to tell its size by; give Tuner size=")
    if any(tensor.device.type == "meta" for tensor in found):
        raise ValueError("the batch is on the meta device, where tensors have no numbers")
    shape = tuple(found[0].shape)
    if len(shape) <= batch_dim or shape[batch_dim] == 0:
        raise ValueError(f"the batch has no examples: its first tensor is {shape}, examples in dimension {batch_dim}")
    return shape[batch_dim]


def check_network(model: nn.Module, hypers: Hyperparameters, centred: bool) -> None:
    """Refuse a network that a tuner cannot train, whose responses are `centred` or not.

    Raises:
        ValueError: says why.
    """
    check_frozen(hypers)
    check_devices(model, hypers)
    check_dtypes(model, hypers)
    check_method(model, hypers, centred)


def check_frozen(hypers: Hyperparameters) -> None:
    """Refuse hyperparameters that require no gradient, as they do where all of a network's parameters were frozen.

    Raises:
        ValueError: says how they are tuned again.
    """
    if not (hypers.raw.requires_grad and hypers.spread.requires_grad):
        raise ValueError(
            "the hyperparameters require no gradient: they are parameters of one of the network's layers, so that "
            "freezing that layer, or net.parameters(), freezes them; net.hypers.requires_grad_(True) lets them be tuned"
        )


def check_dtypes(model: nn.Module, hypers: Hyperparameters) -> None:
    """Refuse a network of low precision, and layers that respond in another dtype than their hyperparameters have.

    Parts that `self_tuning` was to leave alone may have any.

    Raises:
        ValueError: names the first such parameter.
    """
    leave = tuple(f"{name}." for name in getattr(getattr(model, "conversion", None), "leave", ()))
    for name, parameter in [*model.named_parameters(), ("what holds the hyperparameters", hypers.raw)]:
        if name.startswith(leave):
            continue
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
    """Refuse a network on the meta device, and hyperparameters on a device on which nothing of the network is.

    Raises:
        ValueError: names the devices.
    """
    devices = {parameter.device for parameter in model.parameters()}
    if any(device.type == "meta" for device in devices):
        raise ValueError("the network is on the meta device, where tensors have no numbers; to_empty and load it first")
    if hypers.raw.device not in devices:
        others = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"hyperparameters are on {hypers.raw.device}, the network on {others}; move both")


def centring(method: str, centred: bool | None) -> bool:
    """Whether responses count from the current hyperparameters: Delta-STN's do, STN's where that is asked for.

    Raises:
        TypeError: it is neither True, False nor None.
        ValueError: Delta-STN's are not to.
    """
    if centred not in (True, False, None):
        raise TypeError(f"centred must be True, False or None, got {centred!r}")
    if method == "delta" and centred is False:
        raise ValueError('method="delta" counts from the current hyperparameters, so centred must not be False')
    return method == "delta" or bool(centred)


def check_method(model: nn.Module, hypers: Hyperparameters, centred: bool) -> None:
    """Refuse a network whose responses were learnt about another centre, which would now mean something else.

    Raises:
        ValueError: it is one.
    """
    learnt = any(
        bool((p != 0).any())
        for name, p in model.named_parameters()
        if name.rpartition(".")[2].startswith(("response_scale", "response_shift"))
    )
    if learnt and hypers.centred != centred:
        raise ValueError(
            f"the network's responses were learnt by {LEARNT[hypers.centred]}, so it must be that again, got "
            f"{LEARNT[centred]}"
        )
