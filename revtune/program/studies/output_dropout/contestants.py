"""The schedule experiment: one rate, tuned while a network learns, against rates that stay or move by themselves.

As in MacKay et al. 2019, the rate is that of the dropout of a language model's outputs, and nothing else is dropped::

    tuned       from each of some starts
    fixed       at each of some rates; the best by held-out loss goes on into
    noisy       that rate, with normal noise at each update
    sinusoid    that rate, with a sinusoid over updates
    final       the rate at which the one tuned from the first start ended
    replayed    all of its rates, update by update, by a plain network

If the last but one is worse than the last, it is the schedule that helps. All take the same number of updates.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import Any

import torch

from revtune.program.errors import Problem
from revtune.program.recipes.output_dropout import NAME, OutputDropout, OutputDropoutStudy
from revtune.program.tasks.plain_learner import PlainLearner
from revtune.program.tasks.task import check as check_settings
from revtune.program.tasks.task import check_tuned
from revtune.tuning.hypers.kinds import NEAREST

HIGHEST = 0.99
"""What a rate that moves by itself stays below."""


Schedule = Callable[[int], float]
"""The rate of an update, from 0 on."""


def check(study: OutputDropoutStudy) -> None:
    """Raise `Problem` for a study that cannot be."""
    check_settings(study)
    check_tuned(study, study.method)
    for name, low in (("starts", NEAREST), ("rates", 0.0)):
        rates = getattr(study, name)
        if not rates or len(set(rates)) < len(rates) or not all(low <= rate <= 1 - NEAREST for rate in rates):
            told = " ".join(map(str, rates)) or "none"
            raise Problem(f"--{name} must be different rates from {low:g} to below 1, got {told}", code=2)


class ScheduledLearner(PlainLearner):
    """Learns by a plain network, at a rate for each update.

    Args:
        task: what is learnt.
        schedule: the rates.
    """

    def __init__(self, task: OutputDropout, schedule: Schedule) -> None:
        super().__init__(task, {NAME: schedule(0)})
        self.schedule = schedule

    def update(self) -> float:
        """As in `Learner`."""
        self.hypers.put({NAME: self.schedule(self.steps)})
        return super().update()


def fixed(rate: float) -> Schedule:
    """One rate."""
    return lambda step: rate


def noisy(rate: float, deviation: float, seed: int) -> Schedule:
    """A rate with normal noise, which is a function of seed and update."""

    def at(step: int) -> float:
        draw = torch.Generator().manual_seed(hash((seed, step)))
        return within(rate + deviation * torch.randn((), generator=draw, dtype=torch.float64).item())

    return at


def sinusoid(rate: float, amplitude: float, period: int) -> Schedule:
    """A rate that swings, upwards at first."""
    return lambda step: within(rate + amplitude * math.sin(2 * math.pi * step / period))


def replayed(start: float, records: list[dict[str, Any]]) -> Schedule:
    """The rates of a tuner's history: each holds from the update after its step on, `start` before the first."""
    steps, rates = [record["step"] for record in records], [start, *(record["values"][NAME] for record in records)]
    return lambda step: rates[bisect.bisect_right(steps, step)]


def within(rate: float) -> float:
    """The nearest number that a rate can be."""
    return min(max(rate, 0.0), HIGHEST)
