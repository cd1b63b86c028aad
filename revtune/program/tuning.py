"""How a run tunes its hyperparameters: the settings of STN and Delta-STN, for language models and for tasks alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from revtune.program.errors import Problem
from revtune.program.typed import check_numbers
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Hyper

Tuned = Literal["delta", "stn"]

TUNED: tuple[Tuned, ...] = ("stn", "delta")

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

    def hyperparameters(self, hypers: Mapping[str, Hyper]) -> Hyperparameters:
        """The set of these by name, their perturbations scaled as these settings say."""
        how: dict[str, Any] = {"scale": self.scale, "tune_scale": self.tune_scales}
        return Hyperparameters(**{name: replace(hyper, **how) for name, hyper in hypers.items()})

    def for_tuner(self) -> dict[str, Any]:
        """The arguments of a `Tuner` that these settings say."""
        rule = HYPER_RULES[self.optimizer]
        return {
            "hyper_optimizer": lambda groups: rule(groups, self.hyper_lr), "warmup": self.warmup, "ratio": self.ratio,
            "entropy": self.entropy,
        }  # fmt: skip


def check_tuning(tuning: Tuning, method: Tuned) -> None:
    """Raise `Problem` for the first setting of a method that no run can have."""
    check_numbers(tuning, prefix=f"{method}.")
    if tuning.tune_scales and tuning.scale > Hyper.max_scale:
        most = f"{Hyper.max_scale:g} where it is tuned"
        raise Problem(f"--{method}.scale must be at most {most}, got {tuning.scale}", code=2)


def check_reached(steps: int, tuning: Tuning, method: Tuned) -> None:
    """Raise `Problem` for so few updates that the method would never tune."""
    if steps < (first := tuning.warmup + tuning.ratio):
        why = f"by --{method}.warmup {tuning.warmup} and --{method}.ratio {tuning.ratio}"
        raise Problem(f"--steps must be at least {first}, the first at which hyperparameters are tuned {why}, "
                      f"got {steps}", code=2)  # fmt: skip
