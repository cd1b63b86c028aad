"""What saved states a `Tuner` takes up: all or nothing, and only one from which its next step can be taken."""

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


LATER = {"held"}
"""What states that were saved by an earlier version lack."""


def check_state(state: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuse a saved state that is none of this tuner's, before anything is loaded.

    Raises:
        ValueError: names what is missing or differs.
    """
    if not isinstance(state, dict) or (missing := own.keys() - state.keys() - LATER):
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
    if not (type(state["seconds"]) in (int, float) and 0 <= state["seconds"] < math.inf):
        raise damaged("seconds", "a time", state["seconds"])
    lists = dict.fromkeys(("history", "gradients", "optimizers", *(LATER & state.keys())), list)
    dicts = dict.fromkeys(("model", "states", *OPTIMIZERS), Mapping)
    for name, kind in {"method": str, **lists, **dicts}.items():
        if not isinstance(state[name], kind):
            raise damaged(name, f"a {kind.__name__.lower()}", state[name])
    for name, held in zip(OPTIMIZERS, state.get("held", ()), strict=False):
        found = state[name].get("state")
        if not isinstance(found, Mapping) or len(found) != held:
            raise damaged(f"{name}['state']", f"that of {held} parameters", found)


def damaged(name: str, wanted: str, given: object) -> ValueError:
    """The error for a part of a saved state that is not what it must be."""
    return ValueError(f"the saved state is damaged: {name} must be {wanted}, got {given!r:.60}")


def check_loaded(hypers: Hyperparameters, *optimizers: Optimizer) -> None:
    """Refuse what has been loaded, if no step can be taken from it; torch's own optimizers try one on a copy.

    Raises:
        ValueError: names the hyperparameter or the optimizer.
    """
    for name, fine in zip(hypers.names, (hypers.raw.isfinite() & hypers.spread.isfinite()).tolist(), strict=True):
        if not fine:
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
