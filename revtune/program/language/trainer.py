"""Training: one step after another over the streams of a text, validated, saved, and resumed where it stood."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import torch

import revtune as rt
from revtune.errors import NonFiniteError, ProcessError, ReversalError, StateRangeError
from revtune.processes import Processes
from revtune.program.data.text import Corpus, after, segment
from revtune.program.data.text_sources import load
from revtune.program.errors import Problem
from revtune.program.language import sample
from revtune.program.language.config import Config
from revtune.program.language.evaluate import held_out
from revtune.program.language.progress import Progress
from revtune.program.language.run import Run, create
from revtune.program.language.task import LanguageTask
from revtune.program.language.tuned_learner import TunedLearner, learner
from revtune.program.machine import resident_bytes
from revtune.program.runs import checkpoint
from revtune.program.runs.arithmetic import Arithmetic
from revtune.program.runs.checkpoint import Saved, not_of_this_run, packed_as, unpacked_as
from revtune.program.runs.folder import already_finished, command_line, intact, refuse_taken
from revtune.program.runs.followed import OF
from revtune.program.runs.metrics import Metrics, Unwritten, bits
from revtune.program.runs.seals import Seals
from revtune.program.runs.stopping import STOPPED, asked_to_stop, telling
from revtune.program.runs.together import agree, own_device, texts
from revtune.program.runs.tracking import Tracked
from revtune.program.tuning import write_schedule
from revtune.program.typed import told_of
from revtune.tuning.tuner.mechanic import Mechanic
from revtune.tuning.tuner.schedule import Schedule

METER_EVERY = 10
"""Steps between two whose stored bits are metered, and memory: metering each would slow a run down."""


class Report(Protocol):
    """What shows how a run goes."""

    def step(self, facts: dict[str, Any]) -> None:
        """Take in the measurements of a step."""

    def valid(self, facts: dict[str, Any]) -> None:
        """Take in those of a validation."""


class Trainer:
    """A model that learns a corpus as a configuration says, and everything that its next step depends on.

    Args:
        config: of the run.
        corpus: the text.
        schedule: the hyperparameters by step of a run that replays another's.
        processes: that take each step together, every one with its own streams of the text; one alone by default.

    Raises:
        Problem: a setting cannot be had on this machine, or the schedule is not of a net with these rates; or the
            processes differ in what decides a run's numbers.
    """

    def __init__(
        self, config: Config, corpus: Corpus, schedule: Schedule | None = None, processes: Processes | None = None
    ) -> None:  # fmt: skip
        self.learning, self.processes = config.learning, processes or Processes()
        self.writes = self.processes.rank == 0
        self.device = usable(own_device(config.learning.device))
        self.arithmetic = Arithmetic.here(self.device)
        torch.set_num_threads(config.learning.threads)
        torch.manual_seed(config.learning.seed)
        agree(self.processes, decisive(config, corpus, schedule, self.arithmetic))
        self.task = LanguageTask(config, corpus, device=self.device, tested=False, processes=self.processes)
        self.learner = learner(self.task, config, schedule)
        self.mechanic = Mechanic(self.learner.optimizer) if self.learning.lr_too else None
        self.model, self.rows = self.learner.model, self.task.part("train")
        self.progress = Progress()
        self.seals = Seals({})

    def train(self, run: Run, metrics: Metrics | Unwritten, report: Report) -> Progress:
        """Take the steps that are left.

        Raises:
            Problem: it was asked to stop, which it does after a checkpoint; a step fails; the disk refuses.
        """
        self.seals = run.seals()  # now, so that what is edited while it learns is found
        with asked_to_stop(patient=self.processes.count > 1) as asked, self._others(run):
            while self.progress.step < self.learning.steps:
                facts = self.step()
                metrics.add(facts)
                self._tell(report.step, {**facts, **self.learner.facts()}, run, asked)
                last, stop = self.progress.step == self.learning.steps, self.processes.total(asked.is_set())[0] > 0
                if last or self.progress.step % self.learning.valid_every == 0:
                    facts = self.validate(run)
                    metrics.add(facts)
                    self._tell(report.valid, facts, run, asked)
                if last or stop or self.progress.step % self.learning.save_every == 0:
                    self._check_finite(run)  # or nothing could go on from the checkpoint
                    self._save(run, metrics)
                if stop and not last:
                    goes_on = f"{command_line('train', '--resume', run.folder)} goes on"
                    raise Problem(f"stopped after step {self.progress.step}; {goes_on}", code=STOPPED)
        return self.progress

    def _save(self, run: Run, metrics: Metrics | Unwritten) -> None:
        checkpoint.check_alike(self.processes, self.model, self.progress.step)
        saved = self.saved(metrics.sync(), metrics.digest())
        if self.writes:
            run.save(run.checkpoint, saved)

    @contextlib.contextmanager
    def _others(self, run: Run) -> Iterator[None]:
        """Within this block another process may end, which ends the run."""
        try:
            yield
        except ProcessError as error:
            step = checkpoint.read_facts(run.checkpoint).facts["place"]["step"] if run.checkpoint.exists() else 0
            goes_on = f"{command_line('train', '--resume', run.folder)} goes on after step {step}"
            raise Problem(
                f"step {self.progress.step + 1} failed: {error}; {goes_on}, on any number of processes"
            ) from error

    def _tell(self, tell: Callable[[dict[str, Any]], None], facts: dict[str, Any], run: Run, asked: Event) -> None:
        with telling(self.progress.step, command_line("train", "--resume", run.folder), asked):
            tell(facts)

    def _check_finite(self, run: Run) -> None:
        for name, tensor in checkpoint.weights(self.model).items():
            if not tensor.isfinite().all():
                after = f"{name} is not finite after step {self.progress.step}"
                raise Problem(f"{after}; a lower learning rate may help{intact(run.folder)}")

    def step(self) -> dict[str, Any]:
        """Take one update; returns its measurements."""
        progress, began = self.progress, time.perf_counter()
        length = self.learning.length_of(progress.step)
        rate = self.learning.rate(progress.step, progress.falls)
        batch = segment(self.rows, progress.position, length)
        metered = rt.meter(peak=False) if progress.step % METER_EVERY == 0 else contextlib.nullcontext()
        try:
            with metered as meter:
                told = self.learner.update(batch, rate)
        except (NonFiniteError, ReversalError, StateRangeError) as error:
            raise Problem(f"step {progress.step + 1} failed: {error}") from error
        loss, norm = told["loss"], told.get("norm", 0.0)  # a tuner refuses a norm that is not finite by itself
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise Problem(
                f"step {progress.step + 1} failed: loss {loss}, gradient's norm {norm}; a lower learning rate may help"
            )
        self._advance(length)
        rate *= self.mechanic.factor if self.mechanic else 1.0
        tokens = len(batch.inputs) * self.learning.batch
        facts = {"step": progress.step, "loss": loss, "lr": rate, **told, "tokens": tokens}
        facts["seconds"] = round(time.perf_counter() - began, 4)
        if meter is not None:
            facts |= {**bits(meter), "resident_bytes": int(self.processes.total(resident_bytes())[0])}
        return facts

    def _advance(self, length: int) -> None:
        self.progress.step += 1
        self.progress.position = after(self.rows, self.progress.position, length)
        if self.progress.position == 0:
            self.learner.begin_anew()

    def validate(self, run: Run) -> dict[str, Any]:
        """Measure the held-out loss; save the best model's weights, or lower the learning rate on a plateau."""
        progress = self.progress
        self._check_finite(run)
        try:
            loss = held_out(self.processes, self.model, self.task.part("valid"), self.learning.length)
        except (NonFiniteError, ReversalError, StateRangeError) as error:
            raise Problem(f"the validation at step {progress.step} failed: {error}") from error
        if not math.isfinite(loss):
            raise Problem(f"the validation at step {progress.step} failed: loss {loss}; a lower learning rate may help")
        facts = {"step": progress.step, "valid_loss": loss, **self.learner.facts()}
        if isinstance(self.learner, TunedLearner) and self.writes:
            write_schedule(run.schedule, self.learner.schedule())
        if progress.best is None or loss < progress.best:
            progress.best, progress.best_step, progress.stale = loss, progress.step, 0
            if self.writes:
                run.save(run.weights, Saved(checkpoint.weights(self.learner.plain()), facts, self.seals.digests))
        else:
            progress.stale += 1
            if progress.stale >= self.learning.patience:
                progress.falls, progress.stale = progress.falls + 1, 0
        return facts

    def saved(self, metrics_size: int, metrics_digest: str) -> Saved:
        """All that `restore` needs, and the size and the digest of the metrics file so far."""
        saved = self._with_mechanic(self.learner.saved())
        facts = {"place": dataclasses.asdict(self.progress), "metrics": metrics_size, "metrics_sha256": metrics_digest}
        facts |= {**saved.facts, "arithmetic": self.arithmetic.to_json()}
        return Saved(saved.tensors, facts, self.seals.digests)

    def restore(self, saved: Saved, path: Path) -> tuple[int, str]:
        """Take up what the trainer that made `saved` had; returns the size and the digest of its metrics file.

        Raises:
            Problem: it was a trainer of another configuration, or the checkpoint holds impossible values.
        """
        try:
            self.progress = Progress(**saved.facts["place"])
            size, digest = saved.facts["metrics"], saved.facts["metrics_sha256"]
        except (KeyError, TypeError) as error:
            raise Problem(f"{path} is no checkpoint of a run: {error} is missing or unknown") from error
        try:
            self.progress.check(len(self.rows))
        except ValueError as error:
            raise Problem(f"{path} is no checkpoint of this run: {error}") from error
        if type(size) is not int or size < 0 or not isinstance(digest, str):
            raise Problem(f"{path} is no checkpoint of a run: its metrics have size {size!r} and digest {digest!r}")
        self.learner.restore(saved, path, step=self.progress.step, position=self.progress.position)
        if self.mechanic:
            try:
                state = unpacked_as("mechanic", saved)
                if isinstance(state, dict) and "start" not in state:
                    self.mechanic.start = 1.0  # as runs began before a start was found for them
                self.mechanic.load_state_dict(state)
            except (KeyError, TypeError, ValueError) as error:
                raise not_of_this_run(path, error) from error
        return size, digest

    def _with_mechanic(self, saved: Saved) -> Saved:
        if self.mechanic is None:
            return saved
        own = packed_as("mechanic", self.mechanic.state_dict())
        return Saved({**saved.tensors, **own.tensors}, {**saved.facts, **own.facts})


def decisive(config: Config, corpus: Corpus, schedule: Schedule | None, arithmetic: Arithmetic) -> dict[str, Any]:
    """What decides a run's numbers, which all its processes must have alike; where data lie is no part of it."""
    settings = dataclasses.asdict(config)
    for place in ("file", "data"):
        del settings["text"][place]
    computing = {"revtune": rt.__version__, **arithmetic.to_json()}
    values = schedule and {name: part for name, part in schedule.items() if name != OF}
    return {**settings, "data": corpus.digest(), "schedule": values, "arithmetic": computing}


def start(
    config: Config,
    out: Path | None,
    report: Report,
    schedule: Schedule | None = None,
    track: Tracked = "none",
    processes: Processes | None = None,
) -> Run:
    """Train a new run, from its first step to its last; one that replays a schedule is given it."""
    refuse_taken(out)
    corpus = load(config.text)
    trainer = Trainer(config, corpus, schedule, processes)
    run = made(trainer, lambda: create(config, corpus, out, schedule))
    learn(trainer, run, Metrics(run.metrics, 0) if trainer.writes else Unwritten(), report, track)
    return run


def made(trainer: Trainer, create: Callable[[], Run]) -> Run:
    """The run whose folder the first process makes, as all processes know it."""
    folder = create().folder if trainer.writes else Path()
    first, *_ = texts(trainer.processes, str(folder))
    return Run(Path(first))


def learn(trainer: Trainer, run: Run, metrics: Metrics | Unwritten, report: Report, track: Tracked) -> None:
    """Take the steps that are left, and tell a tracker of them and of a sample at their end, if one is named."""
    with contextlib.closing(metrics):
        metrics.track(track, trainer.progress.step)
        progress = trainer.train(run, metrics, report)
        if metrics.tracker is not None:
            metrics.tracker.text("sample", sample.shown(run.model(), run.vocabulary()), progress.step)


def resume(run: Run, report: Report, track: Tracked = "none", processes: Processes | None = None) -> Run:
    """Train the rest of a run, from its last checkpoint on, or from the start if it was stopped before the first.

    Raises:
        Problem: nothing is left to do; the checkpoint or the data are not the run's; or the backend or the instruction
            set is not the checkpoint's, and the environment does not ask for it by name.
    """
    config = run.config()
    run.check_seals()
    corpus = load(run.text(), run.corpus_json().get("digest"))
    run.check_data(corpus)
    with told_of(run.folder / "config.json"):
        trainer = Trainer(config, corpus, run.replayed(), processes)
    size, digest, before = 0, None, None
    if run.checkpoint.exists():
        saved = checkpoint.read(run.checkpoint)
        size, digest = trainer.restore(saved, run.checkpoint)
        before = saved.facts.get("arithmetic")
    else:
        run.check_no_checkpoint(config.learning.save_every)
    if trainer.progress.best is not None:
        run.check_best(trainer.learner.plain(), trainer.progress.best_step)
    if trainer.progress.step >= config.learning.steps:
        raise already_finished(run.folder, config.learning.steps)
    if before is not None:
        trainer.arithmetic.go_on(Arithmetic.of(before, run.checkpoint), run.folder)
    agree(trainer.processes, dataclasses.asdict(trainer.progress))
    if run.accept_edits and trainer.writes:
        run.seal_anew()
    learn(trainer, run, Metrics(run.metrics, size, digest) if trainer.writes else Unwritten(), report, track)
    return run


def usable(name: str) -> torch.device:
    """A device by name.

    Raises:
        Problem: this machine or this torch has none of that name.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError, ImportError) as error:
        raise Problem(f"--device {name} cannot be used: {str(error).splitlines()[0]}", code=2) from error
    if device.type not in ("cpu", "cuda"):
        raise Problem(f"--device {name} cannot be used: a run computes on cpu or cuda", code=2)
    return device
