"""How a run tunes its hyperparameters: the settings of STN and Delta-STN, for language models and for tasks alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch

from revtune.program.errors import Problem
from revtune.program.files import write
from revtune.program.typed import check_each, check_numbers
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import NEAREST, Hyper
from revtune.tuning.tuner.schedule import Schedule

Tune = Literal["delta", "stn", "off"]

Tuned = Literal["delta", "stn"]

TUNED: tuple[Tuned, ...] = ("stn", "delta")

LEAST = NEAREST
"""The rate that a tuned one may start from at least, and as far from 1 at most."""

HyperRule = Literal["adam", "rmsprop"]

HYPER_RULES: dict[HyperRule, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How STN and Delta-STN tune: the other methods read nothing of it."""

    warmup: int = 200
    """Updates of the weights before the first of the hyperparameters."""
    ratio: int = 2
    """Updates of the weights to one of the hyperparameters."""
    optimizer: HyperRule = "adam"
    """Update rule of hyperparameters and scales."""
    hyper_lr: float = 0.01
    """Their learning rate."""
    entropy: float = 1e-3
    """Weight of the perturbations' entropy, which tunes their scales."""
    tune_scales: bool = True
    """Whether to tune the scales of perturbations, or leave them where they start."""
    scale: float = 0.5
    """Where scales start."""
    response_lr: float = 1.0
    """Learning rate of the responses, in those of the weights."""
    centred: bool = False
    """Whether STN's responses count from the current hyperparameters, as Delta-STN's always do."""

    def hyperparameters(self, hypers: Mapping[str, Hyper]) -> Hyperparameters:
        """The set of these by name, their perturbations scaled as these settings say."""
        how: dict[str, Any] = {"scale": self.scale, "tune_scale": self.tune_scales}
        return Hyperparameters(**{name: replace(hyper, **how) for name, hyper in hypers.items()})

    def for_tuner(self) -> dict[str, Any]:
        """The arguments of a `Tuner` that these settings say."""
        rule = HYPER_RULES[self.optimizer]
        return {
            "hyper_optimizer": lambda groups: rule(groups, self.hyper_lr), "warmup": self.warmup, "ratio": self.ratio,
            "entropy": self.entropy, "centred": self.centred or None,
        }  # fmt: skip


DELTA = Tuning(hyper_lr=0.02, tune_scales=False)
"""As the task `ptb_lstm` has them: scales that stay do not shrink until responses have nothing to learn from."""

STN = Tuning(tune_scales=False)

CENTRED = replace(STN, centred=True)
"""STN for language models: counted from zero, responses also learn what training asks of the weights anyway, and every
rate then grows (benchmarks/results/joint)."""


class OfBothMethods:
    """What settings have that hold those of each method."""

    stn: Tuning
    delta: Tuning

    def tuning(self, method: Tuned) -> Tuning:
        """The settings of a method that tunes."""
        return self.stn if method == "stn" else self.delta


class Methods(Protocol):
    """Settings of methods that tune."""

    @property
    def tuned_from(self) -> float:
        """Where rates start that are 0, as no gradient reaches them there."""

    def tuning(self, method: Tuned) -> Tuning:
        """The settings of a method."""


class Tunes(Methods, Protocol):
    """Settings of a run that may tune its rates."""

    @property
    def tune(self) -> Tune:
        """By which method, or not at all."""


WITHIN = f"from {LEAST:g} to 1 - {LEAST:g}"
"""Where a tuned rate may start, in words."""


def check_methods(settings: Methods) -> None:
    """Raise `Problem` for the first setting of the methods that no run can have, whether it tunes or not."""
    check_each(settings, "tuned_from", lambda value: LEAST <= value <= 1 - LEAST, WITHIN)
    for method in TUNED:
        check_tuning(settings.tuning(method), method)


def check_tunes(settings: Tunes, steps: int, net: object, rates: str) -> None:
    """Raise `Problem` for the first setting of how a run tunes that no run can have.

    Args:
        settings: of the run.
        steps: updates of the run.
        net: settings that have the rates to be tuned.
        rates: names of these, with spaces between.
    """
    check_each(settings, "tune", get_args(Tune).__contains__, f"one of {', '.join(get_args(Tune))}")
    check_methods(settings)
    if settings.tune == "off":
        return
    check_reached(steps, settings.tuning(settings.tune), settings.tune, untuned="--tune off")
    check_starts(net, rates)


def check_starts(net: object, rates: str) -> None:
    """Raise `Problem` for the first of these rates that no tuned one can start from."""
    starts = f"0, to start from --tuned-from, or {WITHIN} where it is tuned"
    check_each(net, rates, lambda value: not value or LEAST <= value <= 1 - LEAST, starts)


def check_tuning(tuning: Tuning, method: Tuned) -> None:
    """Raise `Problem` for the first setting of a method that no run can have."""
    check_numbers(tuning, prefix=f"{method}.")
    if tuning.tune_scales and tuning.scale > Hyper.max_scale:
        most = f"{Hyper.max_scale:g} where it is tuned"
        raise Problem(f"--{method}.scale must be at most {most}, got {tuning.scale}", code=2)


def check_reached(steps: int, tuning: Tuning, method: Tuned, *, untuned: str) -> None:
    """Raise `Problem` for so few updates that the method would never tune; `untuned` is the option for that."""
    if steps < (first := tuning.warmup + tuning.ratio):
        why = f"by --{method}.warmup {tuning.warmup} and --{method}.ratio {tuning.ratio}"
        raise Problem(f"--steps must be at least {first}, the first at which hyperparameters are tuned {why}, "
                      f"got {steps}; {untuned} tunes nothing", code=2)  # fmt: skip


def write_schedule(path: Path, schedule: Schedule) -> None:
    """Write all values that hyperparameters have had, as `Tuner.schedule` tells."""
    write(path, json.dumps(schedule).encode() + b"\n")


def in_a_line(values: dict[str, float]) -> str:
    """Values of hyperparameters as a run tells them at its end."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def told_values(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Hyperparameters among the facts of a step, each value with the scale of its perturbations where it has one."""
    scales = facts.get("scales", {})
    return [
        (name, f"{value:.3g} (scale {scales[name]:.2g})" if name in scales else f"{value:.4g}")
        for name, value in facts.get("values", {}).items()
    ]
