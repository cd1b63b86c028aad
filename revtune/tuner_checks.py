"""What a `Tuner` accepts: settings, optimizers, batches and saved states, each refused with a sentence of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from revtune.hyperparameters import Hyperparameters
from revtune.trees import tensors

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


def checked(optimizer: Optimizer, base: list[nn.Parameter], added: list[nn.Parameter]) -> Optimizer:
    """An optimizer, if it holds just these parameters and lets responses be.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"optimizer must make a torch.optim.Optimizer, it made a {type(optimizer).__name__}")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    wanted = {id(p) for p in [*base, *added]}
    if held != wanted:
        raise ValueError(
            f"the optimizer must hold the model's {len(wanted)} parameters, but it lacks {len(wanted - held)} of them "
            f"and holds {len(held - wanted)} others; give a factory that makes it from the groups it is handed"
        )
    responses = {id(p) for p in added}
    for group in optimizer.param_groups:
        if group.get("weight_decay") and any(id(p) in responses for p in group["params"]):
            raise ValueError(
                f"the optimizer decays responses by weight_decay={group['weight_decay']}, which pulls them to 0; keep "
                "the parameter groups apart as they were handed over"
            )
    return optimizer


def checked_hyper(optimizer: Optimizer, own: list[nn.Parameter]) -> Optimizer:
    """An optimizer of hyperparameters, if it holds just these and does not pull them anywhere.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"hyper_optimizer must make a torch.optim.Optimizer, it made a {type(optimizer).__name__}")
    if {id(p) for group in optimizer.param_groups for p in group["params"]} != {id(p) for p in own}:
        raise ValueError("hyper_optimizer must make its optimizer from the groups it is handed, it holds others")
    decays = {group["weight_decay"] for group in optimizer.param_groups if group.get("weight_decay")}
    if decays:
        raise ValueError(
            f"hyper_optimizer decays hyperparameters by weight_decay={max(decays)}, which pulls rates to one half; it "
            "must be 0"
        )
    return optimizer


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


def check_state(state: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuse a saved state that is none of this tuner's, before anything is loaded.

    Raises:
        ValueError: names what is missing or differs.
    """
    if not isinstance(state, dict) or (missing := own.keys() - state.keys()):
        lacks = f"{min(missing)!r} is missing" if isinstance(state, dict) else f"got {type(state).__name__}"
        raise ValueError(f"the saved state is none of a Tuner: {lacks}")
    check_kinds(state)
    if state["method"] != own["method"]:
        raise ValueError(f"the saved state is of method {state['method']!r}, this tuner's is {own['method']!r}")
    if state["optimizers"] != own["optimizers"]:
        kinds = f"{' and '.join(state['optimizers'])}, this tuner's are {' and '.join(own['optimizers'])}"
        raise ValueError(f"the saved state is of optimizers {kinds}")
    if state["gradients"] and state["accumulate"] != own["accumulate"]:
        waits = f"gradients that wait for accumulate={state['accumulate']}, this tuner's is {own['accumulate']}"
        raise ValueError(f"the saved state holds {waits}; save after an update")
    saved, mine = state["model"], own["model"]
    if differing := saved.keys() ^ mine.keys():
        name = min(differing)
        where = "this" if name in mine else "that"
        raise ValueError(f"the saved state is of another network: {name} is only in {where}")
    for name, one in mine.items():
        if isinstance(one, Tensor) and not isinstance(saved[name], Tensor):
            raise damaged(name, "a tensor", saved[name])
        if isinstance(one, Tensor) and one.shape != saved[name].shape:
            shapes = f"{tuple(saved[name].shape)} there and {tuple(one.shape)} here"
            raise ValueError(f"the saved state is of another network: {name} is {shapes}")


def check_kinds(state: dict[str, Any]) -> None:
    """Refuse a saved state whose parts are not what they must be.

    Raises:
        ValueError: names the first that is not.
    """
    for name in ("steps", "valid_steps", "accumulate"):
        if type(state[name]) is not int or state[name] < 0:
            raise damaged(name, "a count", state[name])
    if not (_is_number(state["seconds"]) and 0 <= state["seconds"] < math.inf):
        raise damaged("seconds", "a time", state["seconds"])
    lists = dict.fromkeys(("history", "gradients", "optimizers"), list)
    for name, kind in {"model": Mapping, "states": Mapping, "method": str, **lists}.items():
        if not isinstance(state[name], kind):
            raise damaged(name, f"a {kind.__name__.lower()}", state[name])


def damaged(name: str, wanted: str, given: object) -> ValueError:
    """The error for a part of a saved state that is not what it must be."""
    return ValueError(f"the saved state is damaged: {name} must be {wanted}, got {given!r:.60}")
