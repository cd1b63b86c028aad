"""A run of a task as it goes: steps, validations, checkpoints, and a folder that it goes on in.

config.json              recipe, method and settings
metrics.jsonl            a line a validation: figures, values, time
checkpoint.safetensors   everything that the next step depends on
weights.safetensors      the plain network with the lowest held-out loss
result.json              held-out and test figures of that network, and its hyperparameters
history.jsonl, .png      every step of the hyperparameters
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from revtune.errors import NonFiniteError
from revtune.program.errors import Problem
from revtune.program.files import regular, write
from revtune.program.runs import checkpoint
from revtune.program.runs.checkpoint import Saved, packed, unpacked
from revtune.program.runs.clock import Clock
from revtune.program.runs.metrics import Metrics
from revtune.program.runs.stopping import STOPPED, asked_to_stop, telling
from revtune.program.tasks.learner import Learner
from revtune.program.tasks.tuned_learner import TunedLearner
from revtune.tuning.tuner.history import History

SAVE_SECONDS = 20.0


TOLD = 200
"""Characters of torch's word on a state that does not fit."""


Over = Callable[[Learner, Clock], bool]


class Report(Protocol):
    """Who watches a run."""

    def valid(self, facts: dict[str, Any]) -> None:
        """Told after each validation."""


class Course:
    """A learner's way through a folder.

    Args:
        learner: what learns.
        folder: where it is kept; what is there is gone on with.
        goes_on: the command that goes on with it, for who stops it.

    Raises:
        Problem: the folder's checkpoint is damaged or another task's, or not there though it once was; or another
            process learns there.
    """

    def __init__(self, learner: Learner, folder: Path, goes_on: str) -> None:
        self.learner, self.folder, self.goes_on = learner, folder, goes_on
        self.clock, size, digest = Clock(), 0, None
        self.path = folder / "checkpoint.safetensors"
        if self.path.exists():
            size, digest = self._restore(checkpoint.read(self.path))
        elif found := self._had_checkpoint():
            raise Problem(f"{self.path} is not there, but {found}; put it back, or move {folder} away to begin anew")
        self.metrics = Metrics(folder / "metrics.jsonl", size, digest)
        self._saved = time.monotonic()

    def _had_checkpoint(self) -> str | None:
        """What shows that a folder without a checkpoint once had one, if anything."""
        for name in ("result.json", "weights.safetensors"):
            if (self.folder / name).exists():
                return f"{name} is"
        path, late = self.folder / "metrics.jsonl", list[int]()
        for line in regular(path).read_bytes().splitlines() if path.exists() else []:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                facts = json.loads(line)
                if facts["wall"] > SAVE_SECONDS:
                    late.append(facts["step"])
        return f"{path.name} knows of step {late[-1]}" if len(late) > 1 else None  # saved after the first of them

    def _restore(self, saved: Saved) -> tuple[int, str]:
        try:
            facts = saved.facts["course"]
            if facts["data"] != self.learner.learnt.digest():
                raise Problem(f"the data are not those that {self.folder} was trained on: their digest differs")
            self.learner.restore(unpacked(saved))
            self.clock = Clock(wall=facts["wall"], cpu=facts["cpu"])
            kept: tuple[int, str] = facts["metrics"], facts["metrics_sha256"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            told = " ".join(str(error).split())[:TOLD]
            raise Problem(f"{self.path} is no checkpoint of this run: {told}") from error
        return kept

    def save(self) -> None:
        """Keep where it stands."""
        saved = packed(self.learner.state())
        metrics = {"metrics": self.metrics.sync(), "metrics_sha256": self.metrics.digest()}
        facts = {"data": self.learner.learnt.digest(), **self.clock.now(), **metrics}
        write(self.path, checkpoint.pack(Saved(saved.tensors, {**saved.facts, "course": facts})))
        self._saved = time.monotonic()

    def close(self) -> None:
        """Let the folder go."""
        self.metrics.close()

    def learn(self, over: Over, report: Report, *, last: bool = True) -> None:
        """Take steps until it is over, which is asked before each.

        Args:
            over: whether it is.
            report: who is told of validations.
            last: whether to validate after the last step in any case.

        Raises:
            Problem: it was asked to stop, after a checkpoint; a step fails; the disk refuses.
        """
        every = self.learner.learning.valid_every
        with asked_to_stop() as asked:
            while not over(self.learner, self.clock):
                self._ask(self.learner.step)
                if self.learner.steps % every == 0:
                    self.validate(report)
                    if time.monotonic() - self._saved > SAVE_SECONDS:
                        with self.clock.stopped():
                            self.save()
                if asked.is_set():
                    self.save()
                    raise Problem(f"stopped after step {self.learner.steps}; {self.goes_on} goes on", code=STOPPED)
            if last and self.learner.unvalidated:
                self.validate(report)
            with self.clock.stopped():
                self.save()

    def validate(self, report: Report) -> None:
        """Validate, and tell of it."""
        found = self._ask(self.learner.validate)
        facts = {"step": self.learner.steps, **self.clock.now(), **found, "values": self.learner.values()}
        self.metrics.add(facts)
        with self.clock.stopped(), telling(self.learner.steps, self.goes_on):
            report.valid(facts)

    def _ask(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except NonFiniteError as error:
            raise Problem(f"step {self.learner.steps + 1} failed: {error}; a lower --lr may help") from error

    def whole(self) -> bool:
        """Whether all that `result` writes is there, and figures and weights are as they were written."""
        try:
            told = json.loads((self.folder / "result.json").read_bytes())
            kept = checkpoint.read(self.folder / "weights.safetensors").facts
        except (OSError, ValueError, RecursionError, Problem):
            return False
        drawn = ("history.jsonl", "history.png") if self._history() else ()
        return bool(told == kept) and all((self.folder / name).exists() for name in drawn)

    def _history(self) -> History | None:
        history = self.learner.tuner.history if isinstance(self.learner, TunedLearner) else None
        return history if history and history.records else None

    def result(self, **more: Any) -> dict[str, Any]:
        """Write the best network, its figures with perhaps more of them, and the hyperparameters' history; the figures.

        Raises:
            Problem: it has not been validated yet.
        """
        learner = self.learner
        if not learner.best:
            first = learner.learning.valid_every
            raise Problem(f"{self.folder} has no result: its first validation is at step {first}")
        last = learner.values()
        learner.take_best()
        figures = {split: learner.figures(split) for split in ("valid", "test")}
        facts = {"step": learner.place.best_step, **figures, "values": learner.values(), "final_values": last, **more}
        write(self.folder / "weights.safetensors", checkpoint.pack(Saved(learner.weights(), facts)))
        if history := self._history():
            history.write(self.folder / "history.jsonl")
            history.plot(self.folder / "history.png")
        write(self.folder / "result.json", json.dumps(facts, indent=1).encode() + b"\n")
        return facts
