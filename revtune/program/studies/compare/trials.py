"""A trial of a search as it is run: here, or in one of several processes that run trials at once.

A search asks Optuna for the values of each trial, and tells it what became of it; where there are workers, these learn,
report each validation to Optuna's storage and ask there whether to go on. Each has an equal part of the search's time,
so that a budget is the time of all of them together.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.samplers import RandomSampler
from optuna.trial import Trial, TrialState

from revtune.errors import NonFiniteError
from revtune.program.runs import checkpoint
from revtune.program.runs.checkpoint import packed
from revtune.program.runs.clock import Clock, ClockKind
from revtune.program.studies.compare.storage import Kept
from revtune.program.tasks.learner import Learner
from revtune.program.tasks.plain_learner import PlainLearner
from revtune.program.tasks.task import Task


def learn(
    trial: Trial, learner: Learner, steps: int, clock: Clock, is_over: Callable[[], bool], tell: Callable[[Any], None]
) -> TrialState:
    """Learn until the trial is whole or pruned, or the search is over; what has become of the trial.

    Args:
        trial: Optuna's.
        learner: at its values.
        steps: of a whole trial.
        clock: counts the trial's time, without what is told and asked.
        is_over: whether the search is; asked before each step.
        tell: takes in each validation.
    """
    every = learner.learning.valid_every
    while learner.steps < steps:
        if is_over():
            return TrialState.PRUNED if learner.best else TrialState.FAIL
        try:
            learner.step()
            if learner.steps % every:
                continue
            figures = learner.validate()
        except NonFiniteError:
            return TrialState.FAIL
        facts = {"trial": trial.number, "step": learner.steps, **clock.now(), **figures, "values": learner.values()}
        with clock.stopped():
            tell(facts)
            trial.report(figures["loss"], learner.steps // every)
            if learner.steps < steps and trial.should_prune():
                return TrialState.PRUNED
    return TrialState.COMPLETE


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        state: Optuna's word for it.
        loss: the lowest held-out loss; None where it was not validated.
        spent: seconds of both clocks.
        lines: its validations, with seconds since it began.
    """

    state: TrialState
    loss: float | None
    spent: dict[str, float]
    lines: list[dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """A trial to run.

    Attributes:
        number, id: Optuna's of the trial.
        values: of the hyperparameters.
        steps: of a whole trial.
        seconds: after which the search is over.
        clock: whose seconds.
        weights: where its best network is written, if it was validated.
        seals: that are written with it.
    """

    number: int
    id: int
    values: dict[str, float]
    steps: int
    seconds: float
    clock: ClockKind
    weights: Path
    seals: dict[str, str]


@dataclass(frozen=True)
class _Worker:
    task: Task
    study: optuna.Study
    stop: Event


_here: list[_Worker] = []
"""What this process works with, if it is a worker."""


def begin(task_of: Callable[[], Task], kept: Kept, pruner: optuna.pruners.BasePruner, stop: Event) -> None:
    """Make this process a worker.

    Args:
        task_of: loads what trials learn.
        kept: where the trials are kept.
        pruner: ends trials early.
        stop: set when the search is to stop.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the search is asked, and asks its workers
    task = task_of()
    torch.set_num_threads(task.study.threads)
    # a sampler that nobody asks, as values are chosen already
    _here.append(_Worker(task, kept.study(pruner, RandomSampler()), stop))


def run(job: Job) -> Outcome:
    """Run a trial in a worker."""
    (worker,), lines = _here, list[dict[str, Any]]()
    learner, trial = PlainLearner(worker.task, job.values), Trial(worker.study, job.id)
    clock = Clock()  # other contestants build their networks before their time begins, too

    def is_over() -> bool:
        return worker.stop.is_set() or clock.read(job.clock) >= job.seconds

    state = learn(trial, learner, job.steps, clock, is_over, lines.append)
    spent = clock.now()
    if learner.best:
        checkpoint.write(job.weights, replace(packed(learner.best), seals=job.seals))
    return Outcome(state, learner.progress.best if learner.best else None, spent, lines)
