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
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from revtune.program.errors import Problem
from revtune.program.files import read_bytes, write
from revtune.program.runs import checkpoint
from revtune.program.runs.checkpoint import Saved, packed, unpacked
from revtune.program.runs.clock import Clock, ClockKind
from revtune.program.runs.metrics import Metrics
from revtune.program.runs.seals import Seals, digest
from revtune.program.runs.stopping import STOPPED, asked_to_stop, telling
from revtune.program.studies.compare import journal_seals, storage, trials
from revtune.program.studies.compare.journal_seals import JOURNAL, METRICS
from revtune.program.studies.compare.samplers import distribution, grid, pruner, sampler
from revtune.program.studies.compare.trials import Job, Outcome
from revtune.program.studies.compare.workers import Workers
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
        url: of a storage of Optuna's that keeps the trials in the place of the journal.

    Raises:
        Problem: another process searches there, or a file there is damaged.
    """

    def __init__(
        self, task: Task, searcher: Searcher, folder: Path, steps: int, command: str, seals: Seals | None = None,
        url: str | None = None,
    ) -> None:  # fmt: skip
        self.task, self.searcher, self.folder, self.steps, self.command = task, searcher, folder, steps, command
        self.seals = seals or Seals({})
        self.spaces, path = task.spaces(), folder / METRICS
        # held with all its lines, so that no other process is at the journal while it is mended
        self.metrics = Metrics(path, path.stat().st_size if path.exists() else 0)
        rounds = steps // task.study.learning.valid_every
        try:
            self.kept, self.pruner = storage.kept(folder, searcher, url), pruner(searcher, rounds)
            self.study = storage.opened(self.kept, self.pruner)
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self.study.tell(trial.number, state=TrialState.FAIL)
            ended = self.ended()
            size = lines_kept(path, ended, accept_edits=self.seals.accept_edits)
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
                outcome = self._run(trial, learner, is_over, report)
                if not asked.is_set():
                    with self.clock.stopped():
                        self._end(trial, outcome, partial(self._keep, trial.number, learner))
                if asked.is_set():  # also while it ended, or a search cut short would pass for a whole one
                    stopped = f"stopped in trial {trial.number} of {self.searcher}"
                    raise Problem(f"{stopped}; {self.command} goes on", code=STOPPED)

    def learn_by(self, workers: int, budget: float, clock: ClockKind, report: Report) -> None:
        """As `learn`, by several processes that run trials at once, each for an equal part of what is left.

        The order in which trials end, and so the values of later ones, depends on their speed. The journal is sealed
        when none runs.

        Raises:
            Problem: it was asked to stop, or a worker has died.
        """
        spent = self.clock.now()
        left = dict.fromkeys(range(workers), (budget - spent[clock]) / workers)
        with asked_to_stop() as asked, self._workers(workers) as team:
            while not asked.is_set():
                for worker in [one for one, seconds in left.items() if seconds > 0 and one not in team.busy]:
                    if self._exhausted(len(team.busy)):
                        break
                    trial, learner = self._next()
                    team.run(worker, trial, self._job(trial, learner, left[worker], clock))
                if not team.busy:
                    break
                for worker, trial, outcome in team.ended():
                    left[worker] -= outcome.spent[clock]
                    if not asked.is_set():
                        spent = self._count(spent, outcome, report)
                        self._end(trial, replace(outcome, spent=spent, lines=[]), lambda: None, seal=False)
            if asked.is_set():
                team.stop()
        self.clock = Clock(wall=spent["wall"], cpu=spent["cpu"])
        self._seal()
        if asked.is_set():
            raise Problem(f"stopped in {workers} trials of {self.searcher}; {self.command} goes on", code=STOPPED)

    def _workers(self, count: int) -> Workers:
        return Workers(count, self.task, self.kept, self.pruner, self.command)

    def _job(self, trial: Trial, learner: Learner, seconds: float, clock: ClockKind) -> Job:
        values, seals = learner.values(), dict(self.seals.digests)
        return Job(
            trial.number, trial._trial_id, values, self.steps, seconds, clock, self._weights(trial.number), seals
        )

    def _count(self, spent: dict[str, float], outcome: Outcome, report: Report) -> dict[str, float]:
        """Write down a trial's validations, at times as if trials ran one after another; the time spent after it."""
        for facts in outcome.lines:
            facts |= {name: round(seconds + facts[name], 3) for name, seconds in spent.items()}
            self.metrics.add(facts)
            with telling(facts["step"], self.command):
                report.valid(facts)
        return {name: round(seconds + outcome.spent[name], 3) for name, seconds in spent.items()}

    def _next(self) -> tuple[Trial, Learner]:
        """The next trial, and what learns at its values."""
        number = sum(trial.state != TrialState.WAITING for trial in self.study.get_trials(deepcopy=False))
        self.study.sampler = sampler(self.searcher, self.spaces, self.task.study.seed, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate TPE is one
            trial = self.study.ask({name: distribution(space) for name, space in self.spaces.items()})
        return trial, PlainLearner(self.task, dict(trial.params))

    def _exhausted(self, running: int = 0) -> bool:
        """Whether a grid has no more points, besides trials that run; that at the starting values is none of them."""
        points = math.prod(map(len, grid(self.spaces).values()))
        return self.searcher == "grid" and len(self.ended()) + running >= 1 + points

    def _run(self, trial: Trial, learner: Learner, is_over: Callable[[], bool], report: Report) -> Outcome:
        """Learn here; what has become of the trial."""

        def tell(facts: dict[str, Any]) -> None:
            self.metrics.add(facts)
            with telling(facts["step"], self.command):
                report.valid(facts)

        state = trials.learn(trial, learner, self.steps, self.clock, is_over, tell)
        return Outcome(state, learner.progress.best if learner.best else None, self.clock.now(), [])

    def _end(self, trial: Trial, outcome: Outcome, keep: Callable[[], None], *, seal: bool = True) -> None:
        """Keep the network if it is the best, then tell Optuna.

        In this order, as whatever dies in between then leaves a network too many, never a trial without its own.
        """
        self.metrics.sync()
        before = self.best()
        better = outcome.loss is not None and (before is None or outcome.loss < _loss(before))
        if better:
            keep()
        if outcome.loss is not None:
            trial.set_user_attr("loss", outcome.loss)
        for name, seconds in outcome.spent.items():
            trial.set_user_attr(name, seconds)
        self.study.tell(trial, outcome.loss if outcome.state == TrialState.COMPLETE else None, outcome.state)
        worse = before.number if better and before is not None else None if better else trial.number
        if worse is not None:
            self._weights(worse).unlink(missing_ok=True)
        if seal:
            self._seal()

    def _keep(self, number: int, learner: Learner) -> None:
        self._write(number, packed(learner.best), self.seals.digests)

    def _seal(self) -> None:
        """Have the journal know what it holds and what lies beside it."""
        if self.kept.url is not None:
            return
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
        if self.kept.url is None:
            own[JOURNAL] = digest(read_bytes(self.kept.journal))
        self._write(best.number, saved, {**self.seals.digests, **own})
        write(self.folder / "result.json", content)
        return facts


def _loss(trial: FrozenTrial) -> float:
    loss: float = trial.user_attrs["loss"]
    return loss


def lines_kept(path: Path, ended: list[FrozenTrial], *, accept_edits: bool = False) -> int:
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
