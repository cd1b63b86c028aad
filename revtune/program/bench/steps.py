"""`revtune bench steps`: one step at a time, of layers and of cells, beside torch's own.

A step without a gradient is what generating text does. A loop is how a user trains cells: some steps, then backward.
All contestants are built with the same sizes and take turns, as in `revtune bench speed`, on one thread. Seconds are
those that the processor gave this thread: turns are so short that other processes would fall into few of them.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

import revtune as rt
from revtune.program.bench import worker
from revtune.program.bench.goals import Goal
from revtune.program.bench.measuring import StepFunction, check_turns, turns, warmed_up
from revtune.program.bench.worker import Job, Record
from revtune.program.files import check_output, drafts, write
from revtune.program.machine import processor, processors, versions

StepKind = Literal["step", "loop"]

KINDS: dict[StepKind, str] = {"step": "single step, no gradients", "loop": "20 steps of a loop, forward and backward"}

PAIRS: dict[StepKind, list[tuple[Any, Any]]] = {
    "step": [
        (rt.RevGRU, nn.GRU), (rt.RevGRUCell, nn.GRUCell), (rt.RevLSTM, nn.LSTM), (rt.RevLSTMCell, nn.LSTMCell),
    ],
    "loop": [(rt.RevGRUCell, nn.GRUCell), (rt.RevLSTMCell, nn.LSTMCell)],
}  # fmt: skip
"""Each of ours and what it is measured against."""

GOAL = Goal(1.2)
"""Of a single step. Loops have none: sequences are trained by layers."""

LOOP = 20
"""Steps of a loop."""

ROUNDS = 41
"""Rounds by default. A turn is a few milliseconds, which others disturb often."""

TURN = 0.004
"""Seconds that a turn of the first contestant lasts, if `MOST_REPEATS` steps take so long."""


@dataclass(frozen=True, kw_only=True)
class StepCase:
    """What is run at which sizes; inputs are as wide as the state."""

    kind: StepKind
    batch: int
    hidden: int


@dataclass(frozen=True, kw_only=True)
class StepJob(Job):
    """What a process measures: cases in this order, in so many rounds."""

    cases: tuple[StepCase, ...]
    rounds: int


CASES = (
    *(StepCase(kind="step", batch=batch, hidden=hidden) for hidden in (128, 256, 650) for batch in (1, 4, 16)),
    *(StepCase(kind="loop", batch=16, hidden=hidden) for hidden in (128, 650)),
)


def steps(*, rounds: int = ROUNDS, markdown: bool = False, out: Path = Path("runs/steps.json")) -> None:
    """Time of single steps, and of loops over cells, over that of torch's own: about a minute.

    Args:
        rounds: of which the median is taken, at least 7.
        markdown: print tables for a README.
        out: file that the figures go to as JSON.
    """
    # here, since a worker runs this module too, and must not load rich
    from revtune.program.bench.display import Markdown, Terminal

    check_turns((1,), rounds)
    check_output(out)
    display, records = Markdown() if markdown else Terminal(), list[Record]()
    with drafts(out) as (figures,), display.measuring(len(CASES)):
        coming = worker.records(__name__, StepJob(cases=CASES, threads=1, rounds=rounds).text(), list(map(str, CASES)))
        for case in CASES:
            with display.waiting(f"a {case.kind} at B={case.batch}, H={case.hidden}"):
                records.append(next(coming))
        facts = {**versions(), "processor": processor(), "processors": processors(), "rounds": rounds}
        write(figures, json.dumps({**facts, "records": records}, indent=1).encode())
    for kind, title in KINDS.items():
        rows = [row for record in records if record["kind"] == kind for row in rows_of(record)]
        headings = ("B, H", "us", "ratio", "range", "goal")
        display.table("Reversible over torch's", f"{title}, 1 thread", headings, rows)
    met = [GOAL.verdict(median(ratios)) == "met" for record in records for _, ratios, goal in pairs(record) if goal]
    display.say(
        f"Ratio: median over rounds; range: of a round's, least to largest. Goals: {sum(met)} of {len(met)} met."
    )
    display.tell(f"Figures: {out}")


def rows_of(record: Record) -> Iterator[tuple[str, ...]]:
    """The table's rows of a case: ours, its microseconds, and how they compare."""
    for ours, ratios, goal in pairs(record):
        middle, microseconds = median(ratios), 1e6 * median(record["seconds"][ours])
        compared = f"{goal} {goal.verdict(middle)}" if goal else ""
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        yield ours, f"{record['batch']}, {record['hidden']}", f"{microseconds:,.0f}", f"{middle:.2f}", spread, compared


def pairs(record: Record) -> Iterator[tuple[str, list[float], Goal | None]]:
    """Each of ours in a case, its time over torch's round by round, and the goal if there is one."""
    seconds, kind = record["seconds"], record["kind"]
    for ours, theirs in PAIRS[kind]:
        both = zip(seconds[ours.__name__], seconds[f"nn.{theirs.__name__}"], strict=True)
        yield ours.__name__, [a / b for a, b in both], GOAL if kind == "step" else None


def work(job: StepJob) -> Iterator[Record]:
    """Measure in this process; the two of a pair take turns by themselves, so that none has the other's caches."""
    torch.set_num_threads(job.threads)
    for case in job.cases:
        torch.manual_seed(1)
        seconds: dict[str, list[float]] = {}
        for ours, theirs in PAIRS[case.kind]:
            named = {f"nn.{theirs.__name__}": theirs, ours.__name__: ours}
            contestants = {name: contestant(kind, case) for name, kind in named.items()}
            seconds |= turns(contestants, job.rounds, warmed_up(contestants, TURN), time.thread_time)
        yield {**dataclasses.asdict(case), "seconds": seconds}


def contestant(kind: Any, case: StepCase) -> StepFunction:
    """A function that takes a case's step, or its loop."""
    module = kind(case.hidden, case.hidden)
    cells = "Cell" in kind.__name__
    shape = (case.batch, case.hidden) if cells else (1, case.batch, case.hidden)
    state: Any = torch.randn(shape)
    if "LSTM" in kind.__name__:
        state = (state, torch.randn(shape))
    if case.kind == "loop":
        return loop(module, torch.randn(LOOP, *shape), state)
    x = torch.randn(shape)

    @torch.no_grad()
    def step() -> object:
        return module(x, state)

    return step


def loop(cell: Callable[[Tensor, Any], Any], xs: Tensor, state: Any) -> StepFunction:
    """A function that runs a cell over steps and takes the gradient of all its outputs."""

    def train() -> None:
        hx, outputs = state, []
        for x in xs:
            hx = cell(x, hx)
            outputs.append(hx if isinstance(hx, Tensor) else hx[0])
        torch.stack(outputs).square().sum().backward()

    return train


if __name__ == "__main__":
    for record in work(StepJob.of(sys.argv[1])):
        print(json.dumps(record), flush=True)
