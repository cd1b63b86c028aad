"""Which saved states a `Tuner` loads: a whole one of its own kind, from which its next step can be taken."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from revtune.tuning.hypers.hyperparameters import Hyperparameters

OPTIMIZERS = ("optimizer", "hyper_optimizer")

YOUNGER_PARTS: dict[str, type] = {"held": list, "read": list, "start": Mapping, "sizes": Mapping}
"""Parts of a state that the earliest versions did not save, and what they are."""


def check_state(state: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuse a saved state that does not fit this tuner, before anything is loaded.

    Raises:
        ValueError: names what is missing or differs.
    """
    if not isinstance(state, dict) or (missing := own.keys() - state.keys() - YOUNGER_PARTS.keys()):
        lacks = f"{min(missing)!r} is missing" if isinstance(state, dict) else f"got {type(state).__name__}"
        raise ValueError(f"the saved state is none of a Tuner: {lacks}")
    check_kinds(state)
    if state["method"] != own["method"]:
        raise ValueError(f"the saved state is of method {state['method']!r}, this tuner's is {own['method']!r}")
    if state["optimizers"] != own["optimizers"]:
        kinds = f"{' and '.join(state['optimizers'])}, this tuner's are {' and '.join(own['optimizers'])}"
        raise ValueError(f"the saved state is of optimizers {kinds}")
    if state["states"].keys() != own["states"].keys():
        there, here = (bool(one["states"]) for one in (state, own))
        raise ValueError(f"the saved state is of a tuner with carry={there}, this tuner's is carry={here}")
    if state["gradients"] and state["accumulate"] != own["accumulate"]:
        waits = f"gradients that wait for accumulate={state['accumulate']}, this tuner's is {own['accumulate']}"
        raise ValueError(f"the saved state holds {waits}; save after an update")
    if "start" in state and state["start"].keys() != own["start"].keys():
        raise damaged("start", f"values of {', '.join(own['start'])}", state["start"])
    saved, mine = state["model"], own["model"]
    if differing := saved.keys() ^ mine.keys():
        name = min(differing)
        where = "this" if name in mine else "that"
        raise ValueError(f"the saved state is of another network: {name} is only in {where}")
    for name, value in mine.items():
        if isinstance(value, Tensor) and not isinstance(saved[name], Tensor):
            raise damaged(name, "a tensor", saved[name])
        if isinstance(value, Tensor) and value.shape != saved[name].shape:
            shapes = f"{tuple(saved[name].shape)} there and {tuple(value.shape)} here"
            raise ValueError(f"the saved state is of another network: {name} is {shapes}")


def check_kinds(state: dict[str, Any]) -> None:
    """Refuse a saved state with a part of the wrong type, a count below 0, or an optimizer that lost its state.

    Raises:
        ValueError: names the first such part.
    """
    for name in ("steps", "valid_steps", "accumulate"):
        if type(state[name]) is not int or state[name] < 0:
            raise damaged(name, "a count", state[name])
    if not (type(state["seconds"]) in (int, float) and 0 <= state["seconds"] < math.inf):
        raise damaged("seconds", "a time", state["seconds"])
    lists = dict.fromkeys(("history", "gradients", "optimizers"), list)
    younger = {name: kind for name, kind in YOUNGER_PARTS.items() if name in state}
    dicts = dict.fromkeys(("model", "states", *OPTIMIZERS), Mapping)
    for name, kind in {"method": str, **lists, **dicts, **younger}.items():
        if not isinstance(state[name], kind):
            raise damaged(name, f"a {kind.__name__.lower()}", state[name])
    for name, held in zip(OPTIMIZERS, state.get("held", ()), strict=False):
        of_parameters = state[name].get("state")
        if not isinstance(of_parameters, Mapping) or len(of_parameters) != held:
            raise damaged(f"{name}['state']", f"that of {held} parameters", of_parameters)


def damaged(name: str, expected: str, given: object) -> ValueError:
    """The error for a part of a saved state that is not what it must be."""
    return ValueError(f"the saved state is damaged: {name} must be {expected}, got {given!r:.60}")


def check_loaded(hypers: Hyperparameters, *optimizers: Optimizer) -> None:
    """Refuse what has been loaded, if no step can be taken from it. Copies of torch's own optimizers try one.

    Raises:
        ValueError: names the hyperparameter or the optimizer.
    """
    for name, finite in zip(hypers.names, (hypers.raw.isfinite() & hypers.spread.isfinite()).tolist(), strict=True):
        if not finite:
            raise ValueError(f"hyperparameter {name!r} is no finite number")
    for optimizer in optimizers:
        if type(optimizer).__module__.startswith("torch.optim") and optimizer.state:
            trial = copy.deepcopy(optimizer)
            for p in (p for group in trial.param_groups for p in group["params"]):
                p.grad = torch.zeros_like(p)
            try:
                trial.step()
            except Exception as error:
                raise ValueError(f"{type(optimizer).__name__} cannot go on from its state: {error!r}") from error
