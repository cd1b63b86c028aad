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
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from revtune.program.data.text import Corpus
from revtune.program.errors import Problem
from revtune.program.recipes import ptb_lstm
from revtune.program.recipes.ptb_lstm import PtbLstm
from revtune.program.tasks.plain_learner import PlainLearner
from revtune.program.tasks.task import Learning, Size, Space, Tuned, check_tuned
from revtune.program.tasks.task import check as tuned_train_check
from revtune.program.tasks.word_task import Out, Segment, WordStudy, WordTask
from revtune.tuning.hypers.kinds import NEAREST, Hyper, Rate

NAME = "output_drop"


HIGHEST = 0.99
"""What a rate that moves by itself stays below."""


Schedule = Callable[[int], float]
"""The rate of an update, from 0 on."""


@dataclass(frozen=True, kw_only=True)
class Study(WordStudy):
    """What the experiment compares."""

    method: Tuned = "stn"
    """What tunes the rate."""
    starts: tuple[float, ...] = (0.05, 0.3, 0.5, 0.7, 0.9)
    """Rates that it is tuned from; the schedule from the first is replayed."""
    rates: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    """Rates that stay."""
    deviation: float = 0.05
    """Standard deviation of the best one's noise."""
    amplitude: float = 0.1
    """How far a sinusoid takes it to either side."""
    period: int = 400
    """Updates of a whole turn of that."""

    def contestants(self) -> list[str]:
        """All that compete, in the order in which they can learn."""
        tuned, fixed = ([f"{kind}-{rate}" for rate in rates] for kind, rates in (
            ("tuned", self.starts), ("fixed", self.rates)
        ))  # fmt: skip
        return [*tuned, *fixed, "noisy", "sinusoid", "final", "replayed"]


def study(size: Size = "small") -> Study:
    """The settings of `ptb_lstm`, in so many updates that rates which are fixed stop improving, but the highest."""
    base = ptb_lstm.study(size)
    own = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    if size == "small":
        learning: Learning = own["learning"]
        own["learning"] = dataclasses.replace(learning, steps=1_200)
    return Study(**own, period=400 if size == "small" else 1_200)


def check(study: Study) -> None:
    """Raise `Problem` for a study that cannot be."""
    tuned_train_check(study)
    check_tuned(study, study.method)
    for name, low in (("starts", NEAREST), ("rates", 0.0)):
        rates = getattr(study, name)
        if not rates or len(set(rates)) < len(rates) or not all(low <= rate <= 1 - NEAREST for rate in rates):
            told = " ".join(map(str, rates)) or "none"
            raise Problem(f"--{name} must be different rates from {low:g} to below 1, got {told}", code=2)


class OutputDropout(PtbLstm):
    """A language model that drops its outputs, and nothing else.

    Args:
        study: its settings.
        corpus: the text; loaded by default.
        start: where the rate starts.
    """

    def __init__(self, study: WordStudy, corpus: Corpus | None = None, start: float = ptb_lstm.START) -> None:
        super().__init__(study, corpus)
        self.start = start

    def hypers(self) -> dict[str, Hyper]:
        """As in `Task`."""
        return {NAME: Rate(self.start)}

    def spaces(self) -> dict[str, Space]:
        """As in `Task`."""
        return {NAME: Space(0.0, 0.9)}

    def train_loss(self, model: nn.Module, out: Out, batch: Segment, h: Any) -> Tensor:
        """Cross entropy alone."""
        return WordTask.train_loss(self, model, out, batch, h)


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
