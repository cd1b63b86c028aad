"""The schedule experiment: one rate, tuned while a network learns, against rates that stay or follow a schedule.

As in MacKay et al. 2019, the rate is that of a language model's output dropout, and nothing else is dropped::

    tuned       from each of some starts
    fixed       at each of some rates
    noisy       at the fixed rate of the lowest held-out loss, with normal noise at each update
    sinusoid    at that rate, with a sinusoid over updates
    final       at the rate at which the one tuned from the first start ended
    replayed    at all of its rates, update by update, by a plain network

If replayed is better than final, it is the schedule that helps. All take the same number of updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from revtune.program.errors import Problem
from revtune.program.recipes.output_dropout import NAME, OutputDropout, OutputDropoutStudy
from revtune.program.tasks.plain_learner import PlainLearner
from revtune.program.tasks.task import check as check_settings
from revtune.program.tasks.task import check_tuned
from revtune.tuning.conversion.replay import values_at
from revtune.tuning.hypers.kinds import NEAREST
from revtune.tuning.tuner.schedule import columns

HIGHEST = 0.99
"""The most that noise or a sinusoid takes a rate to; at 1 all would be dropped."""

Schedule = Callable[[int], float]
"""The rate of an update, from 0 on."""


def check(study: OutputDropoutStudy) -> None:
    """Raise `Problem` for the first setting that no experiment can have."""
    check_settings(study)
    check_tuned(study, study.method)
    for name, low in (("starts", NEAREST), ("rates", 0.0)):
        rates = getattr(study, name)
        if not rates or len(set(rates)) < len(rates) or not all(low <= rate <= 1 - NEAREST for rate in rates):
            given = " ".join(map(str, rates)) or "none"
            raise Problem(f"--{name} must be different rates from {low:g} to below 1, got {given}", code=2)


def scheduled(task: OutputDropout, schedule: Schedule) -> PlainLearner:
    """Learns by a plain network, whose rate a schedule sets before each update."""
    return PlainLearner(task, schedule=lambda step: {NAME: schedule(step)})


def fixed(rate: float) -> Schedule:
    """One rate."""
    return lambda step: rate


def noisy(rate: float, deviation: float, seed: int) -> Schedule:
    """A rate with normal noise, which depends on seed and update alone, so that a run goes on from any update."""

    def at(step: int) -> float:
        # CPython's hash of a tuple of integers, the same in every process; another mix would change all experiments
        draw = torch.Generator().manual_seed(hash((seed, step)))
        return within(rate + deviation * torch.randn((), generator=draw, dtype=torch.float64).item())

    return at


def sinusoid(rate: float, amplitude: float, period: int) -> Schedule:
    """A rate that swings about its value, upwards at first."""
    return lambda step: within(rate + amplitude * math.sin(2 * math.pi * step / period))


def replayed(start: float, records: list[dict[str, Any]]) -> Schedule:
    """The rates of a tuner's history.

    The tuner's records say after how many updates it took a step; the new rate holds from the next update on. Before
    the first of them the rate is `start`.
    """
    schedule = columns({NAME: start}, records)
    return lambda step: values_at(schedule, step)[NAME]


def within(rate: float) -> float:
    """The nearest number from 0 to `HIGHEST`."""
    return min(max(rate, 0.0), HIGHEST)
