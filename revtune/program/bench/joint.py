"""`revtune bench joint`: reversible nets that tune themselves, beside torch's, which store their states.

Both are `ptb_lstm`'s language model, with the same hyperparameters. Steps are whole: forward, loss, backward, update.
All steps of a shape take turns in one process; each step's memory is measured in a process of its own, as the peak
above weights, optimizers and the gradients of all weights and responses.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median, median_low
from typing import Literal

import torch

from revtune.program.bench import worker
from revtune.program.bench.measuring import (
    LEAST_ROUNDS,
    TURN,
    check_resident,
    check_threads,
    keep_to,
    peak_of,
    turns,
    warmed_up,
)
from revtune.program.bench.tuning_cases import StepKind, TuningCase
from revtune.program.bench.tuning_steps import learner_of, step_of
from revtune.program.bench.worker import Job, Record
from revtune.program.errors import Problem
from revtune.program.files import check_output, write
from revtune.program.layers import Model
from revtune.program.machine import versions

Pair = Literal["LSTM", "GRU"]

PAIRS: dict[Pair, tuple[Model, Model]] = {"LSTM": ("revlstm", "lstm"), "GRU": ("revgru", "gru")}
"""The reversible layers and torch's."""

STEPS: tuple[StepKind, ...] = ("plain", "STN", "STN validation", "Delta-STN", "Delta-STN validation")

SHAPES: dict[str, tuple[int, int, int, int]] = {
    "words": (70, 40, 650, 10_000), "characters": (1_000, 20, 256, 256), "long": (10_000, 8, 256, 256)
}  # fmt: skip
"""T, B, H and V; two layers."""

PROCESSES, LOOKS, WARM_UP = 3, 3, 1
"""Processes of a step whose memory is measured, steps in each, and steps before those."""


@dataclass(frozen=True, kw_only=True)
class JointJob(Job):
    """What a process measures: times of steps of these two cases, or the memory of one step of the first."""

    cases: tuple[TuningCase, ...]
    rounds: int = LEAST_ROUNDS
    step: StepKind | None = None
    steps: tuple[StepKind, ...] = STEPS


def joint(
    *,
    shapes: tuple[str, ...] = ("words", "characters"),
    nets: tuple[Pair, ...] = ("LSTM", "GRU"),
    steps: tuple[StepKind, ...] = STEPS,
    threads: int = 1,
    rounds: int = LEAST_ROUNDS,
    memory: bool = True,
    times: bool = True,
    markdown: bool = False,
    out: Path = Path("runs/joint.json"),
) -> None:
    """Time and memory of self-tuning steps of reversible nets, over their plain step and over torch's nets.

    Args:
        shapes: words (T=70, B=40, H=650, V=10,000), characters (1,000, 20, 256, 256) or long (10,000, 8, 256, 256).
        nets: which layers.
        steps: which steps; the plain one is measured anyway.
        threads: of torch.
        rounds: of which the median is taken.
        memory: whether to measure it.
        times: whether to measure them.
        markdown: print tables for a README.
        out: file that the figures go to as JSON.
    """
    # here, since a worker runs this module too, and must not load rich
    from revtune.program.bench.display import Markdown, Terminal

    if unknown := [shape for shape in shapes if shape not in SHAPES]:
        raise Problem(f"--shapes must be some of {' '.join(SHAPES)}, got {unknown[0]}", code=2)
    check_resident()
    check_threads((threads,))
    if rounds < 1:
        raise Problem(f"--rounds must be at least 1, got {rounds}", code=2)
    check_output(out)
    steps = tuple(step for step in STEPS if step == "plain" or step in steps)
    display, records = Markdown() if markdown else Terminal(), list[Record]()
    with display.measuring(len(shapes) * len(nets)):
        for shape, net in product(shapes, nets):
            record: Record = {"shape": shape, "net": net, "threads": threads}
            cases = tuple(case_of(shape, model) for model in PAIRS[net])
            with display.waiting(f"{net}, {shape}"):
                if times:
                    job = JointJob(cases=cases, threads=threads, rounds=rounds, steps=steps).text()
                    record["seconds"] = next(iter(worker.records(__name__, job, [shape])))["seconds"]
                if memory:
                    record["bytes"] = [remembered(case, threads, steps) for case in cases]
            records.append(record)
            write(out, json.dumps({**versions(), "records": records}, indent=1).encode())
            display.table(f"Rev{net}, {sizes(shape)}", "step", COLUMNS, list(rows(record)))
    display.say(NOTE)
    display.tell(f"Figures: {out}")


COLUMNS = ("time / plain", "range", "time / torch's", "MB", "torch's MB", "times less")

NOTE = (
    "Medians over rounds, and the least and largest ratio of a round. time / torch's: over the same step of torch's "
    "net. MB: the peak above weights, optimizers and gradients."
)


def sizes(shape: str) -> str:
    """A shape in words."""
    steps, rows, units, tokens = SHAPES[shape]
    return f"T={steps:,}, B={rows}, 2 layers of {units}, V={tokens:,}"


def case_of(shape: str, model: Model) -> TuningCase:
    """A language model of a shape."""
    steps, rows, units, tokens = SHAPES[shape]
    return TuningCase(net="ptb_lstm", width=units, batch=rows, steps=steps, tokens=tokens, model=model)


def rows(record: Record) -> Iterator[tuple[str, ...]]:
    """A line for each step."""
    for step in measured_steps(record):
        cells = ["", "", ""]
        if seconds := record.get("seconds"):
            plain, ours, theirs = seconds["0 plain"], seconds[f"0 {step}"], seconds[f"1 {step}"]
            each = sorted(a / b for a, b in zip(ours, plain, strict=True))
            cells = [f"{median(each):.2f}", f"{each[0]:.2f}-{each[-1]:.2f}"]
            cells.append(f"{median(a / b for a, b in zip(ours, theirs, strict=True)):.2f}")
        if needed := record.get("bytes"):
            ours, theirs = needed[0][step], needed[1][step]
            cells += [f"{ours / 1e6:.1f}", f"{theirs / 1e6:.1f}", f"{theirs / max(1, ours):.1f}"]
        else:
            cells += ["", "", ""]
        yield step, *cells


def measured_steps(record: Record) -> list[StepKind]:
    """The steps that were measured."""
    seconds, needed = record.get("seconds"), record.get("bytes")
    return [step for step in STEPS if (not seconds or f"0 {step}" in seconds) and (not needed or step in needed[0])]


def remembered(case: TuningCase, threads: int, steps: tuple[StepKind, ...] = STEPS) -> dict[str, int]:
    """Bytes of each step, each the median of some workers."""
    needed = dict[str, int]()
    for step in steps:
        job = JointJob(cases=(case,), threads=threads, step=step).text()
        outcomes = [worker.outcome(__name__, job) for _ in range(PROCESSES)]
        if failed := next((outcome["error"] for outcome in outcomes if "error" in outcome), None):
            raise Problem(f"memory of {case.model}, {step}, could not be measured: {failed}")
        needed[step] = median_low(outcome["bytes"] for outcome in outcomes)
    return needed


def work(job: JointJob) -> Iterator[Record]:
    """Measure in this process."""
    if job.step is not None:
        yield {"bytes": peak(job.cases[0], job.step, job.threads)}
        return
    torch.set_num_threads(job.threads)
    torch.manual_seed(1)
    steps = {
        f"{number} {kind}": step_of(learner_of(case, kind), kind)
        for number, case in enumerate(job.cases)
        for kind in job.steps
    }
    yield {"seconds": turns(steps, job.rounds, warmed_up(steps, TURN))}


def peak(case: TuningCase, step: StepKind, threads: int) -> int:
    """The most bytes in use during a step above those in use before it and the gradients, the median of some steps."""
    keep_to(threads)
    torch.manual_seed(1)
    learner = learner_of(case, step)
    take = step_of(learner, step)
    gradients = 0 if step.endswith("validation") else sum(p.nbytes for p in learner.model.parameters())
    for _ in range(WARM_UP):
        take()
    return median_low(peak_of(take, torch.device("cpu")) for _ in range(LOOKS)) - gradients


if __name__ == "__main__":
    for record in work(JointJob.of(sys.argv[1])):
        print(json.dumps(record), flush=True)
