"""A run of a task in its folder: steps, validations and checkpoints, from which it goes on.

config.json              recipe, method and settings
environment.json         versions and processors that it began with
metrics.jsonl            a line a validation: figures, values, time, bits stored, memory
checkpoint.safetensors   everything that the next step depends on
weights.safetensors      the plain network with the lowest held-out loss
result.json              held-out and test figures of that network, and its hyperparameters
schedule.json            all values that tuned hyperparameters have had, as `Tuner.schedule` tells
history.jsonl, .png      every step of the hyperparameters
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import revtune as rt
from revtune.errors import NonFiniteError
from revtune.program.errors import Problem
from revtune.program.files import read_bytes, regular, write
from revtune.program.machine import resident_bytes
from revtune.program.runs import checkpoint
from revtune.program.runs.checkpoint import Saved, packed, unpacked
from revtune.program.runs.clock import Clock
from revtune.program.runs.folder import HISTORY, SCHEDULE, already_finished, command_line
from revtune.program.runs.metrics import Metrics, bits
from revtune.program.runs.seals import Seals, digest, edited
from revtune.program.runs.stopping import STOPPED, asked_to_stop, telling
from revtune.program.tasks.learner import Learner
from revtune.program.tasks.live import RunReport
from revtune.program.tasks.tuned_learner import TunedLearner
from revtune.program.tuning import write_schedule
from revtune.tuning.tuner.history import History

SAVE_SECONDS = 20.0
"""Between checkpoints: a run that is killed loses no more, and writing them costs little beside it."""

WEIGHTS = "weights.safetensors"

DATA = "data"
"""What weights call the digest of the data that they were learnt from, among their seals."""

IsOver = Callable[[Learner, Clock], bool]
"""Whether a learner has come to its end, after the time on a clock."""


class Report(Protocol):
    """What watches a run."""

    def step(self, facts: dict[str, Any]) -> None:
        """Take in a step: its number, and the time."""

    def valid(self, facts: dict[str, Any]) -> None:
        """Take in a validation: step, time, figures and values."""


class TaskRun:
    """A learner and the folder that its run is kept in.

    Args:
        learner: what learns.
        folder: where the run is kept; one that is there is resumed.
        command: what goes on with it, for whoever stops it.
        seals: of the files that the run was begun with.

    Raises:
        Problem: the folder's checkpoint is damaged or another task's, or not there though it once was; or another
            process learns there.
    """

    def __init__(self, learner: Learner, folder: Path, command: str, seals: Seals | None = None) -> None:
        self.learner, self.folder, self.command, self.seals = learner, folder, command, seals or Seals({})
        self.clock, size, digest = Clock(), 0, None
        self.path = folder / "checkpoint.safetensors"
        if self.path.exists():
            size, digest = self._restore(checkpoint.read(self.path))
        elif trace := self._trace_of_checkpoint():
            raise Problem(f"{self.path} is not there, but {trace}; put it back, or move {folder} away to begin anew")
        self.metrics = Metrics(folder / "metrics.jsonl", size, digest)
        self._saved, self._asked = time.monotonic(), threading.Event()

    def _trace_of_checkpoint(self) -> str | None:
        """What shows that a folder without a checkpoint once had one, if anything; the run would write over it."""
        for name in ("result.json", WEIGHTS):
            if (self.folder / name).exists():
                return f"{name} is"
        path, late = self.folder / "metrics.jsonl", list[int]()
        for line in read_bytes(path).splitlines() if path.exists() else []:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                facts = json.loads(line)
                if facts["wall"] > SAVE_SECONDS:
                    late.append(facts["step"])
        # a checkpoint follows the first validation that is so late, so a second one shows that it was written
        return f"{path.name} knows of step {late[-1]}" if len(late) > 1 else None

    def _restore(self, saved: Saved) -> tuple[int, str]:
        self.seals.check(saved.seals, self.path)
        try:
            facts = saved.facts["course"]  # the run's, under the name that all checkpoints have
            if facts["data"] != self.learner.task.digest():
                raise Problem(f"the data are not those that {self.folder} was trained on: their digest differs")
            self.learner.restore(unpacked(saved))
            self.clock = Clock(wall=facts["wall"], cpu=facts["cpu"])
            kept: tuple[int, str] = facts["metrics"], facts["metrics_sha256"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise checkpoint.not_of_this_run(self.path, error) from error
        return kept

    def save(self) -> None:
        """Write the checkpoint; it knows how much of the metrics belongs to it."""
        saved = packed(self.learner.state())
        metrics = {"metrics": self.metrics.sync(), "metrics_sha256": self.metrics.digest()}
        facts = {"data": self.learner.task.digest(), **self.clock.now(), **metrics}
        facts = {**saved.facts, "course": facts}
        checkpoint.write(self.path, Saved(saved.tensors, facts, self.seals.digests))
        self._saved = time.monotonic()

    def close(self) -> None:
        """Let the folder go."""
        self.metrics.close()

    def learn(self, is_over: IsOver, report: Report, *, last: bool = True) -> None:
        """Take steps until the run is over.

        Args:
            is_over: whether it is; asked before each step.
            report: told of steps and validations.
            last: whether to validate after the last step in any case.

        Raises:
            Problem: it was asked to stop, after a checkpoint; a step fails; the disk refuses.
        """
        every = self.learner.learning.valid_every
        with asked_to_stop() as asked:
            self._asked = asked
            while not is_over(self.learner, self.clock):
                metered = rt.meter(peak=False) if (self.learner.steps + 1) % every == 0 else contextlib.nullcontext()
                with metered as meter:
                    self._ask(self.learner.step)
                report.step({"step": self.learner.steps, **self.clock.now()})
                if self.learner.steps % every == 0:
                    self.validate(report, bits(meter))
                    if time.monotonic() - self._saved > SAVE_SECONDS:
                        with self.clock.stopped():
                            self.save()
                if asked.is_set():
                    self.save()
                    raise Problem(f"stopped after step {self.learner.steps}; {self.command} goes on", code=STOPPED)
            if last and self.learner.unvalidated:
                self.validate(report)
            with self.clock.stopped():
                self.save()

    def learn_to_end(self, quoted: str) -> None:
        """Take the steps that are left, shown on the terminal; `quoted` is as in `RunReport`.

        Raises:
            Problem: as `learn`; or nothing is left to do, not even to write a result.
        """
        steps = self.learner.learning.steps
        if self.learner.steps >= steps and self.is_complete():
            raise already_finished(self.folder, steps)
        with RunReport(steps, quoted).shown() as report:
            self.learn(lambda learner, clock: learner.steps >= steps, report)

    def validate(self, report: Report, stored: dict[str, Any] | None = None) -> None:
        """Validate, and report it; of a member of a population that has failed there is nothing to report.

        Args:
            report: told of it.
            stored: the bits that the last step stored, as `metrics.bits` tells them.
        """
        if not (figures := self._ask(self.learner.validate)):
            return
        facts = {"step": self.learner.steps, **self.clock.now(), **figures, **self.learner.told()}
        facts |= {**(stored or {}), "resident_bytes": resident_bytes()}
        self.metrics.add(facts)
        if isinstance(self.learner, TunedLearner):
            with self.clock.stopped():
                write_schedule(self.folder / SCHEDULE, self.learner.tuner.schedule())
        with self.clock.stopped(), telling(self.learner.steps, self.command, self._asked):
            report.valid(facts)

    def _ask(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except NonFiniteError as error:
            raise Problem(f"step {self.learner.steps + 1} failed: {error}; a lower learning rate may help") from error

    def is_complete(self) -> bool:
        """Whether all that `result` writes is there, and figures and weights are as they were written."""
        try:
            result = json.loads(read_bytes(self.folder / "result.json"))
            beside_weights = checkpoint.read(self.folder / WEIGHTS).facts
        except (OSError, ValueError, RecursionError, Problem):
            return False
        history = (HISTORY, "history.png") if self._history() else ()
        return bool(result == beside_weights) and all((self.folder / name).exists() for name in history)

    def _history(self) -> History | None:
        history = self.learner.tuner.history if isinstance(self.learner, TunedLearner) else None
        return history if history and history.records else None

    def result(self, **more: Any) -> dict[str, Any]:
        """Write the best network, its figures, and the hyperparameters' history.

        Args:
            more: figures to write beside these.

        Returns:
            The figures.

        Raises:
            Problem: it has not been validated yet.
        """
        learner = self.learner
        if not learner.best:
            first = learner.learning.valid_every
            raise Problem(f"{self.folder} has no result: its first validation is at step {first}")
        step, last = learner.progress.best_step, learner.values()
        learner.take_best()
        figures = {split: learner.figures(split) for split in ("valid", "test")}
        facts = {"step": step, **figures, "values": learner.values(), "final_values": last, **more}
        seals = {**self.seals.digests, DATA: learner.task.digest()}
        if history := self._history():
            history.write(regular(self.folder / HISTORY))
            history.plot(regular(self.folder / "history.png"))
            seals[HISTORY] = digest(read_bytes(self.folder / HISTORY))
        checkpoint.write(self.folder / WEIGHTS, Saved(learner.weights(), facts, seals))
        # last, as whoever finds it takes the run for finished
        write(self.folder / "result.json", json.dumps(facts, indent=1).encode() + b"\n")
        if self.metrics.tracker is not None:
            self.metrics.tracker.log({"step": learner.steps, "best": figures})
        return facts


def check_result(folder: Path, result: dict[str, Any], seals: Seals) -> None:
    """Raise `Problem` when settings or result.json are not those that the weights were written with."""
    path = folder / WEIGHTS
    if path.exists() and (saved := checkpoint.read_facts(path)).seals:
        seals.check(saved.seals, path)
        if json.dumps(saved.facts) != json.dumps(result) and not seals.accept_edits:
            raise edited(folder / "result.json", path)


def check_metrics(folder: Path, *, accept_edits: bool) -> None:
    """Raise `Problem` when the measurements of a run that has ended are not those that its checkpoint knows of."""
    path = folder / "checkpoint.safetensors"
    if path.exists() and not accept_edits:
        known = checkpoint.read_facts(path).facts.get("course", {}).get("metrics_sha256")
        if known is not None and known != digest(read_bytes(folder / "metrics.jsonl")):
            raise edited(folder / "metrics.jsonl", path)


def data_of(folder: Path) -> str | None:
    """The digest of the data that a run learns from, as its checkpoint knows it; None where that is not whole."""
    path = folder / "checkpoint.safetensors"
    with contextlib.suppress(Problem, LookupError, TypeError):  # who goes on from it says what is wrong with it
        digest = checkpoint.read_facts(path).facts["course"]["data"] if path.exists() else None
        return digest if isinstance(digest, str) else None
    return None


def check_seals(folder: Path, seals: Seals) -> None:
    """Raise `Problem` when a file of a run is not the one that its checkpoint was written with."""
    path = folder / "checkpoint.safetensors"
    if path.exists():
        seals.check(checkpoint.read_facts(path).seals, path)


def best_weights(folder: Path) -> Saved:
    """The best network that the run in a folder wrote at its end.

    Raises:
        Problem: the run has not come to its end, or the file is damaged.
    """
    path, command = folder / WEIGHTS, command_line("train", "--resume", folder)
    if not path.exists():
        raise Problem(f"{folder} has no weights yet; {command} goes on with it")
    try:
        return checkpoint.read(path)
    except Problem as error:
        raise Problem(f"{error}; {command} writes it anew from the checkpoint") from error
