"""Searches for hyperparameters by Optuna, each trial a plain run of a task: what tuning in one run is compared with.

    journal.log              Optuna's own record of the trials, sealed after each, as `journal_seals` tells
    metrics.jsonl            a line a validation
    trial-<n>.safetensors    the network with the lowest held-out loss of all trials
    result.json              its figures and hyperparameters, and how many trials there were

Optuna chooses all values, and the time that it takes does not count. The first trial is at the values that all methods
start from, as whoever searches would try them too. What is drawn for a trial depends on the seed, the trial's number
and the trials before it, so that a search goes on from its journal as if it had not been stopped. The trial that it was
stopped in is lost, unless it is the first.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from revtune.errors import NonFiniteError
from revtune.program.errors import Problem
from revtune.program.files import read_bytes, write
from revtune.program.runs import checkpoint
from revtune.program.runs.checkpoint import Saved, packed, unpacked
from revtune.program.runs.clock import Clock, ClockKind
from revtune.program.runs.metrics import Metrics
from revtune.program.runs.seals import Seals, digest
from revtune.program.runs.stopping import STOPPED, asked_to_stop, telling
from revtune.program.studies.compare import journal, journal_seals
from revtune.program.studies.compare.journal_seals import JOURNAL, METRICS
from revtune.program.studies.compare.samplers import distribution, grid, pruner, sampler
from revtune.program.studies.json_files import parsed
from revtune.program.tasks.learner import Learner
from revtune.program.tasks.loop import Report
from revtune.program.tasks.plain_learner import PlainLearner
from revtune.program.tasks.task import Searcher, Task
from revtune.tuning.hypers.constants import Constants


class Search:
    """A search in a folder, from its last trial on.

    Args:
        task: what trials learn.
        searcher: how values are chosen.
        folder: where it is kept; what is there is resumed.
        steps: updates of a whole trial.
        command: what goes on with the search, for whoever stops it.
        seals: of the files that the search was begun with.

    Raises:
        Problem: another process searches there, or a file there is damaged.
    """

    def __init__(
        self, task: Task, searcher: Searcher, folder: Path, steps: int, command: str, seals: Seals | None = None
    ) -> None:  # fmt: skip
        self.task, self.searcher, self.folder, self.steps, self.command = task, searcher, folder, steps, command
        self.seals = seals or Seals({})
        self.spaces, path = task.spaces(), folder / METRICS
        # held with all its lines, so that no other process is at the journal while it is mended
        self.metrics = Metrics(path, path.stat().st_size if path.exists() else 0)
        rounds = steps // task.study.learning.valid_every
        try:
            self.study = journal.opened(folder / JOURNAL, searcher, pruner(searcher, rounds))
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self.study.tell(trial.number, state=TrialState.FAIL)
            ended = self.ended()
            size = kept(path, ended, accept_edits=self.seals.accept_edits)
            journal_seals.check(folder / JOURNAL, self.seals, task.digest())
        finally:
            self.metrics.close()
        self.metrics = Metrics(path, size)  # without the lines of a trial that was stopped
        if self.seals.accept_edits:
            self._seal()
        if not ended:
            self.study.enqueue_trial(Constants(task.hypers()).values())
        spent = ended[-1].user_attrs if ended else {"wall": 0.0, "cpu": 0.0}
        self.clock = Clock(wall=spent["wall"], cpu=spent["cpu"])

    def ended(self) -> list[FrozenTrial]:
        """Trials that came to their end, whole, pruned or at the end of the budget, or failed."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if {"wall", "cpu"} <= trial.user_attrs.keys()]

    def best(self) -> FrozenTrial | None:
        """The trial with the lowest held-out loss, if any was validated."""
        return min((trial for trial in self.ended() if "loss" in trial.user_attrs), key=_loss, default=None)

    def close(self) -> None:
        """Let the folder go."""
        self.metrics.close()

    def learn(self, budget: float, clock: ClockKind, report: Report) -> None:
        """Take trials until the budget is spent, in seconds of a clock, or a grid has no more points.

        Raises:
            Problem: it was asked to stop.
        """
        with asked_to_stop() as asked:

            def is_over() -> bool:
                return asked.is_set() or self.clock.read(clock) >= budget

            while self.clock.read(clock) < budget:
                with self.clock.stopped():
                    if self._exhausted():
                        return
                    trial, learner = self._next()
                state = self._run(trial, learner, is_over, report)
                if not asked.is_set():
                    self._end(trial, learner, state)
                if asked.is_set():  # also while it ended, or a search cut short would pass for a whole one
                    stopped = f"stopped in trial {trial.number} of {self.searcher}"
                    raise Problem(f"{stopped}; {self.command} goes on", code=STOPPED)

    def _next(self) -> tuple[Trial, Learner]:
        """The next trial, and what learns at its values."""
        number = sum(trial.state != TrialState.WAITING for trial in self.study.get_trials(deepcopy=False))
        self.study.sampler = sampler(self.searcher, self.spaces, self.task.study.seed, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate TPE is one
            trial = self.study.ask({name: distribution(space) for name, space in self.spaces.items()})
        return trial, PlainLearner(self.task, dict(trial.params))

    def _exhausted(self) -> bool:
        """Whether a grid has no more points; the trial at the starting values is none of them."""
        points = math.prod(map(len, grid(self.spaces).values()))
        return self.searcher == "grid" and len(self.ended()) >= 1 + points

    def _run(self, trial: Trial, learner: Learner, is_over: Callable[[], bool], report: Report) -> TrialState:
        """Learn until the trial is whole or pruned, or the search is over; what has become of the trial."""
        while learner.steps < self.steps:
            if is_over():
                return TrialState.PRUNED if learner.best else TrialState.FAIL
            try:
                learner.step()
                if learner.steps % self.task.study.learning.valid_every:
                    continue
                figures = learner.validate()
            except NonFiniteError:
                return TrialState.FAIL
            facts = {"trial": trial.number, "step": learner.steps, **self.clock.now(), **figures}
            self.metrics.add(facts | {"values": learner.values()})
            with self.clock.stopped():
                with telling(learner.steps, self.command):
                    report.valid(facts)
                trial.report(figures["loss"], learner.steps // self.task.study.learning.valid_every)
                if learner.steps < self.steps and trial.should_prune():
                    return TrialState.PRUNED
        return TrialState.COMPLETE

    def _end(self, trial: Trial, learner: Learner, state: TrialState) -> None:
        """Keep the network if it is the best, then tell Optuna.

        In this order, as whatever dies in between then leaves a network too many, never a trial without its own.
        """
        spent = self.clock.now()
        with self.clock.stopped():
            self.metrics.sync()
            before = self.best()
            better = bool(learner.best) and (before is None or learner.progress.best < _loss(before))
            if better:
                self._write(trial.number, packed(learner.best), self.seals.digests)
            if learner.best:
                trial.set_user_attr("loss", learner.progress.best)
            for name, seconds in spent.items():
                trial.set_user_attr(name, seconds)
            self.study.tell(trial, learner.progress.best if state == TrialState.COMPLETE else None, state)
            if better and before is not None:
                self._weights(before.number).unlink(missing_ok=True)
            self._seal()

    def _seal(self) -> None:
        """Have the journal know what it holds and what lies beside it."""
        seal = journal_seals.attribute(self.folder, self.seals, self.task.digest(), self.metrics.sync())
        self.study.set_user_attr(journal_seals.KEY, seal)

    def _write(self, number: int, best: Saved, seals: Mapping[str, str]) -> None:
        checkpoint.write(self._weights(number), replace(best, seals=seals))

    def _weights(self, number: int) -> Path:
        return self.folder / f"trial-{number}.safetensors"

    def result(self, **more: Any) -> dict[str, Any]:
        """Write the figures of the best network.

        Args:
            more: figures to write beside these.

        Returns:
            The figures.

        Raises:
            Problem: no trial has been validated.
        """
        spent, best = self.clock.now(), self.best()
        if best is None:
            raise Problem(f"{self.folder} has no result: none of {len(self.ended())} trials was validated")
        learner = PlainLearner(self.task, dict(best.params))
        saved = checkpoint.read(self._weights(best.number))
        self.seals.check(saved.seals, self._weights(best.number))
        learner.best = unpacked(saved)
        learner.take_best()
        figures = {split: learner.figures(split) for split in ("valid", "test")}
        states = [trial.state for trial in self.ended()]
        counts = {"trials": states.count(TrialState.COMPLETE), "pruned": states.count(TrialState.PRUNED)}
        facts = {"trial": best.number, **figures, "values": learner.values(), **counts, **spent, **more}
        content = json.dumps(facts, indent=1).encode() + b"\n"
        own = {"result.json": digest(content), METRICS: self.metrics.digest()}
        own[JOURNAL] = digest(read_bytes(self.folder / JOURNAL))
        self._write(best.number, saved, {**self.seals.digests, **own})
        write(self.folder / "result.json", content)
        return facts


def _loss(trial: FrozenTrial) -> float:
    loss: float = trial.user_attrs["loss"]
    return loss


def kept(path: Path, ended: list[FrozenTrial], *, accept_edits: bool = False) -> int:
    """How many bytes the lines of trials that came to their end have; those of a trial that did not stand behind them.

    Raises:
        Problem: a line is damaged, or a trial that was validated has none; or trials are unknown, of which only the
            last can be, and `accept_edits` is not given.
    """
    numbers, seen, unknown, size = {trial.number for trial in ended}, set[int](), set[int](), 0
    for number, line in enumerate(read_bytes(path).split(b"\n")[:-1], 1):
        trial = parsed(line, {"trial": int}, path, number)["trial"]
        if trial not in numbers or unknown:
            unknown.add(trial)
            continue
        seen.add(trial)
        size += len(line) + 1
    if len(unknown) > 1 and not accept_edits:
        lacking = f"it lacks trials {' '.join(map(str, sorted(unknown)))}, which {path.name} has"
        raise Problem(
            f"{path.with_name(JOURNAL)} is damaged: {lacking}; put it back, or --accept-edits takes it as it is"
        )
    if lost := {trial.number for trial in ended if "loss" in trial.user_attrs} - seen:
        raise Problem(f"{path} is damaged: it has no line of trial {min(lost)}, whose loss is in journal.log")
    return size
