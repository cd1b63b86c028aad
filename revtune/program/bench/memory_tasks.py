"""`revtune bench memory --tasks`: the memory of a training step at ten shapes of real work, and its time.

Each case has a process of its own, like a user's. A warm-up of three chunks comes first, then the step that counts: the
peak of resident anonymous memory during it above what was resident before, less the gradients that remain. Inputs and
targets are there before, so that they are left out. Seconds are those that the processor gave the process for that
step, since other jobs may run beside it. What would take torch's layer over 2.7 GB is measured at an eighth of its
steps, and said to be an estimate.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import revtune as rt
from revtune.program.bench import worker
from revtune.program.bench.contestants import CELLS, Contestant, chunk_of
from revtune.program.bench.display import Display
from revtune.program.bench.kept_cases import measured
from revtune.program.bench.measuring import gradient_bytes, keep_to, peak_of
from revtune.program.bench.memory_sweep import stack_of
from revtune.program.bench.real_tasks import LOSSES, TASKS, Given, RealTask, drawn, first
from revtune.program.bench.speed_cases import PAIRS
from revtune.program.bench.worker import Job, Record
from revtune.program.files import write
from revtune.program.signals.net import SignalNet
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.layers.stack import DEFAULT_BUDGET

MOST = 2.7e9
"""Bytes that are measured; torch's layers keep some 70 a unit, row and step."""

PART = 8
"""An estimate is measured at one step in so many."""

PROCESSES = 3
"""Of which the middle one counts, for reversible layers: what C's heap keeps is a part of so little."""


@dataclass(frozen=True, kw_only=True)
class TaskJob(Job):
    """One case: who, at which task, after how many steps of warm-up."""

    task: RealTask
    contestant: Contestant
    warm_up: int

    @property
    def key(self) -> str:
        """What tells it from the other cases."""
        return f"{self.task.name}, {self.contestant.name}"

    @property
    def is_estimated(self) -> bool:
        """Whether fewer steps are measured than the task has."""
        task = self.task
        kept = not self.contestant.reversible and not self.contestant.segments
        return kept and 70 * task.steps * task.rows * task.hidden > MOST


def tasks(display: Display, out: Path, threads: int) -> None:
    """Measure all cases that the file does not have yet, and show all."""
    from revtune.program.bench import memory_tasks_results

    records = measured(display, out, list(plan(threads)), measure, "table of tasks", threads=threads)
    memory_tasks_results.show(display, records)
    write(plot := out.with_suffix(".png"), memory_tasks_results.plot(records))
    display.tell(f"Figures: {out}")
    display.tell(f"Plot: {plot}")


def contestants() -> Iterator[Contestant]:
    """Torch's layers, plain and checkpointed, and ours, also with checkpoints."""
    for ours, theirs in PAIRS:
        yield from (Contestant(cell=theirs), Contestant(cell=theirs, segments=True))
        yield from (Contestant(cell=ours), Contestant(cell=ours, checkpoint_every="auto"))


def plan(threads: int) -> Iterator[TaskJob]:
    """All cases, task by task."""
    for task in TASKS:
        for contestant in contestants():
            yield TaskJob(task=task, contestant=contestant, warm_up=0, threads=threads)


def measure(case: TaskJob) -> Record:
    """What a case's workers measured: the middle one of several for reversible layers."""
    task = case.task
    warm_up = min(task.steps, 3 * chunk_of(case.contestant, task.shape))
    steps = task.steps // PART if case.is_estimated else task.steps
    job = dataclasses.replace(case, task=dataclasses.replace(task, steps=steps), warm_up=min(warm_up, steps))
    who = {"task": dataclasses.asdict(task), "name": case.contestant.name}
    found = [worker.outcome(__name__, job.text()) for _ in range(PROCESSES if case.contestant.reversible else 1)]
    middle = worker.middle(found)
    if "error" in middle:
        return {**who, **middle}
    seconds = sorted(record["seconds"] for record in found)[len(found) // 2]
    if case.is_estimated:
        return {**who, "bytes": middle["bytes"] * PART, "seconds": seconds * PART, "estimate": True}
    return {**who, **middle, "seconds": seconds}


def work(job: TaskJob) -> Record:
    """Measure one step in this process."""
    keep_to(job.threads)
    torch.manual_seed(1)
    net, given = net_of(job.contestant, job.task), drawn(job.task, resets=job.contestant.reversible)
    with rt.meter():  # what it imports when it is first used is no part of a step
        step(net, first(job.task, given, job.warm_up))
    net.zero_grad(set_to_none=True)
    seconds: list[float] = []
    used: list[Any] = []

    def timed() -> None:
        began = time.process_time()
        with rt.meter(peak=False) as meter:
            step(net, given)
        seconds.append(time.process_time() - began)
        used.append(meter)

    peak = peak_of(timed, torch.device("cpu"))
    gradients = gradient_bytes(net.parameters())
    inputs = sum(tensor.nbytes for tensor in given if tensor is not None)
    facts = {"bytes": peak - gradients, "seconds": seconds[0], "inputs": inputs, "warm_up": job.warm_up}
    if not isinstance(net.rnn, RevRNN):
        return facts
    stack = stack_of(net.rnn, job.task.steps, job.task.rows)
    chunk = max(DEFAULT_BUDGET, stack.chunk_steps(job.task.steps) * stack.step_bytes)
    return {**facts, "stored": used[0].stored_bits // 8, "bits": used[0].bits_per_unit_step, "chunk": chunk}


def net_of(contestant: Contestant, task: RealTask) -> SignalNet:
    """The contestant's network for a task."""
    rnn = CELLS[contestant.cell](task.inputs, task.hidden)
    checkpoints = contestant.segments or contestant.checkpoint_every is not None
    return SignalNet(rnn, task.outputs, LOSSES[task.wanted], at=task.at, checkpoints=checkpoints)


def step(net: SignalNet, given: Given) -> None:
    """Take the gradients of a loss."""
    x, y, resets = given
    for loss in net.parts(x, y, resets):
        (loss / len(y)).backward()


if __name__ == "__main__":
    print(json.dumps(work(TaskJob.of(sys.argv[1]))))
