"""Whole gradients of long signals beside nn.GRU and nn.LSTM, at equal memory and at equal time.

    python -m benchmarks.signals --data FOLDER [--only ecg music] [--nets gru] [--ways whole] [--seconds 60] [--out F]

A contest is a recipe of the kind "signal". Ours learn by whole gradients. Torch's layers learn whole, in checkpointed
segments, and truncated to so few steps that a training step takes no more memory than RevGRU's (RevLSTM's for nn.LSTM).
All have the same settings and as many seconds of the processor, validations included; each has a process of its own.
A step's memory is its peak above what was there before, less the gradients that remain, as in `revtune bench memory`.
What is told is of the test part, by the net that was best on the held-out part. The file has each figure as soon as it
is known, and a call goes on where the file ends.

    python -m benchmarks.signals JOB     the figures of a job as JSON; `worker.outcome` runs it
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from revtune.program.bench import worker
from revtune.program.bench.display import Markdown
from revtune.program.bench.kept_cases import measured
from revtune.program.bench.measuring import gradient_bytes, keep_to, peak_of
from revtune.program.bench.worker import Record
from revtune.program.layers import Model
from revtune.program.recipes import find
from revtune.program.tasks.loop import TaskRun
from revtune.program.tasks.plain_learner import PlainLearner

ENDLESS = 10**6
"""Updates that no contestant comes to in its time."""

How = Literal["whole", "checkpointed", "truncated"]

PROBE = 50
"""Steps of the truncated gradient by whose memory those that fit are estimated."""

LONG: dict[str, Any] = {"length": 10_000, "lasting": 1_000, "tested": 100}
"""What memory tasks of 10,000 steps have in common; they begin with 100."""

CONTESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ecg": ("ecg", {"valid_every": 50}),
    "music": ("music", {"pieces": "nottingham", "valid_every": 40}),
    "digits": ("digits", {"valid_every": 100}),
    "smnist": ("smnist", {"valid_every": 50}),
    "psmnist": ("psmnist", {"valid_every": 50}),
    "copy": ("copy", {"valid_every": 100}),
    "adding": ("adding", {"valid_every": 100}),
    "long adding": ("adding", {**LONG, "hidden": 32, "batch": 32, "lr": 5e-3, "growing": 600, "valid_every": 400}),
    "long copy": ("copy", {**LONG, "growing": 4_800, "valid_every": 2_000}),
}
"""A name, the recipe, and what its settings differ by from the small ones."""


@dataclass(frozen=True, kw_only=True)
class SignalJob(worker.Job):
    """A contestant, or its training step alone.

    Attributes:
        contest: a key of `CONTESTS`.
        data: folder with data sets.
        model: of the net.
        how: its gradients are taken.
        truncate: steps of a truncated gradient; 0 where that is to be found.
        seconds: of learning; 0 for the memory of a step alone.
        most: bytes that a truncated step may take.
    """

    contest: str
    data: str
    model: Model
    how: How = "whole"
    truncate: int = 0
    seconds: float = 0.0
    most: int = 0

    @property
    def key(self) -> str:
        """What tells it from the other contestants."""
        return f"{self.contest}, {NAMES[self.model]}, {self.how}"


def task_of(job: SignalJob) -> Any:
    """The contestant's task."""
    recipe, changes = CONTESTS[job.contest]
    study = find(recipe).study()
    own = {field.name for field in dataclasses.fields(study)}
    learning = {name: value for name, value in changes.items() if name not in own}
    settings = {name: value for name, value in changes.items() if name in own}
    settings["learning"] = dataclasses.replace(study.learning, steps=ENDLESS, schedule="constant", **learning)
    how = {"checkpoints": job.how == "checkpointed", "truncate": job.truncate or None}
    study = dataclasses.replace(study, data=Path(job.data), model=job.model, threads=job.threads, **settings, **how)
    return find(recipe).task(study)


class Silent:
    """A report that says nothing."""

    def step(self, facts: dict[str, Any]) -> None:
        """Say nothing."""

    def valid(self, facts: dict[str, Any]) -> None:
        """Say nothing."""


def work(job: SignalJob) -> Record:
    """The memory of a contestant's step; or what it learns in its time."""
    keep_to(job.threads)
    learner = PlainLearner(task_of(job))
    if not job.seconds:
        return {"memory": memory(learner)}
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.closing(TaskRun(learner, Path(folder), "")) as run:
            run.learn(lambda _, clock: clock.read("cpu") >= job.seconds, Silent())
            result = run.result()
    return {"updates": learner.steps, "best": result["step"], "test": result["test"], "valid": result["valid"]}


def memory(learner: PlainLearner) -> int:
    """Bytes of the second training step; the first imports and allocates what all have in common."""
    grown = ENDLESS if getattr(learner.task.study, "growing", None) else 0
    batches = [learner.task.train_batch(grown + number) for number in range(2)]

    def gradients(batch: Any) -> None:
        for loss in learner.parts(batch):
            loss.backward()

    gradients(batches[0])
    learner.model.zero_grad(set_to_none=True)
    peak = peak_of(lambda: gradients(batches[1]), torch.device("cpu"))
    return peak - gradient_bytes(learner.model.parameters())


def asked(job: SignalJob) -> Record:
    """What a worker finds of a job; the "error" of one that fails."""
    return worker.outcome("benchmarks.signals", job.text())


def measure(job: SignalJob, reference: Callable[[SignalJob], int]) -> Record:
    """Memory, updates and figures of a contestant; a truncated one's steps are found first.

    Args:
        job: whose `truncate` is 0 where it is to be found.
        reference: the bytes that a truncated step may take.
    """
    if job.how == "truncated":
        job = dataclasses.replace(job, most=reference(job))
        found = fitting(job)
        if found is None:
            return {"error": f"no truncated step takes {job.most / 1e6:.1f} MB or less"}
        job = found
    used = asked(dataclasses.replace(job, seconds=0.0))
    return {**dataclasses.asdict(job), **used, **asked(job)}


def fitting(job: SignalJob) -> SignalJob | None:
    """The job truncated to about the most steps, or a half, a quarter ... of them, that take no more than `most`."""
    probe = asked(dataclasses.replace(job, truncate=PROBE, seconds=0.0))
    truncate = int(PROBE * job.most / probe["memory"])
    while truncate >= 1:
        tried = dataclasses.replace(job, truncate=truncate)
        if asked(dataclasses.replace(tried, seconds=0.0))["memory"] <= job.most:
            return tried
        truncate //= 2
    return None


def plan(names: Sequence[str], data: Path, seconds: float, threads: int) -> Iterator[SignalJob]:
    """All contestants, ours first, as torch's are truncated to their memory."""
    for contest in names:
        for model, ways in WAYS.items():
            for how in ways:
                yield SignalJob(
                    contest=contest, data=str(data), model=model, how=how, seconds=seconds, threads=threads
                )  # fmt: skip


NAMES: dict[Model, str] = {"revgru": "RevGRU", "revlstm": "RevLSTM", "gru": "nn.GRU", "lstm": "nn.LSTM"}

WAYS: dict[Model, tuple[How, ...]] = {
    "revgru": ("whole",), "revlstm": ("whole",), "gru": ("truncated", "checkpointed", "whole"),
    "lstm": ("truncated", "checkpointed", "whole"),
}  # fmt: skip


def rows(records: dict[str, Record], contest: str) -> Iterator[tuple[str, ...]]:
    """The rows of a contest's table."""
    quoted = find(CONTESTS[contest][0]).task.measure
    for record in (record for key, record in records.items() if key.startswith(f"{contest},")):
        name = f"{NAMES[record['model']]}, {record['how']}" if "model" in record else "?"
        if "error" in record:
            yield name, record["error"], "", ""
            continue
        name += f" to {record['truncate']:,} steps" if record["truncate"] else ""
        figure = record["test"][quoted]
        told = f"{figure:.4f}" if quoted == "loss" else f"{figure:.2%}"
        yield name, f"{record['memory'] / 1e6:,.1f}", f"{record['updates']:,}", told


def main(args: Sequence[str] | None = None) -> None:
    """Run the contests that are missing from the file, and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with data sets")
    parser.add_argument("--only", nargs="+", choices=CONTESTS, default=list(CONTESTS))
    parser.add_argument("--seconds", type=float, default=60.0, help="of the processor, for each contestant")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/signals/contests.json"))
    parser.add_argument("--nets", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--ways", nargs="+", choices=get_args(How), default=get_args(How), help="of taking gradients")
    given = parser.parse_args(args)
    jobs = [
        job
        for job in plan(given.only, given.data, given.seconds, given.threads)
        if job.model in given.nets and job.how in given.ways
    ]
    taken: dict[str, int] = {}

    def bytes_of_ours(job: SignalJob) -> int:
        ours: Model = "revlstm" if job.model == "lstm" else "revgru"
        key = f"{job.contest}, {ours}"
        if key not in taken:
            own = dataclasses.replace(job, model=ours, how="whole", truncate=0, seconds=0.0)
            taken[key] = asked(own)["memory"]
        return taken[key]

    display = Markdown()
    records = measured(
        display, given.out, jobs, lambda job: measure(job, bytes_of_ours), "contests of signals", seconds=given.seconds
    )
    for contest in given.only:
        quoted = find(CONTESTS[contest][0]).task.measure
        headings = ("MB a step", "updates", f"test {quoted}")
        display.table("Equal time", f"{contest}, {given.seconds:.0f} s each", headings, rows(records, contest))


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        print(json.dumps(work(SignalJob.of(sys.argv[1]))))
    else:
        main()
