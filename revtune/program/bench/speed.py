"""`revtune bench speed`: time of bare layers and of whole training steps, beside torch's own.

Each thread count has a process of its own. There, at each shape, all contestants are built, take a turn that does not
count, and then take turns: a round goes through them in order, the next one back, so that what slows the machine down
meets all alike. Where torch's layer takes less than a twentieth of a second, a turn runs all of them several times.
What counts is the ratio of two turns of one round: it holds from machine to machine where times do not.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch

import revtune as rt
from revtune.program.bench import worker
from revtune.program.bench.contestants import Contestant, backend_seen
from revtune.program.bench.measuring import LEAST_ROUNDS, THREADS, TURN, check_turns, turns, warmed_up
from revtune.program.bench.speed_cases import PAIRS, Case, plan
from revtune.program.bench.speed_entrants import entrants
from revtune.program.errors import Problem
from revtune.program.files import check_place, drafts
from revtune.program.machine import processor, processors
from revtune.reversible.kernel import backend as native

Backend = Literal["auto", "reference", "native"]


Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process measures.

    Attributes:
        cases: in this order.
        threads: of all contestants.
        rounds: in which each takes a turn.
        backend: of the reversible layers.
        turn: seconds that a turn of torch's layer lasts at least, in so far as `MOST_REPEATS` suffice.
    """

    cases: tuple[Case, ...]
    threads: int
    rounds: int
    backend: Backend
    turn: float

    def text(self) -> str:
        """The job for a worker's command line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def of(cls, text: str) -> Job:
        """The job that a worker was given."""
        facts = json.loads(text)
        return cls(**{**facts, "cases": tuple(map(Case.of, facts["cases"]))})


def speed(
    *,
    quick: bool = False,
    sweep: bool = False,
    threads: tuple[int, ...] = THREADS,
    rounds: int = LEAST_ROUNDS,
    backend: Backend = "auto",
    markdown: bool = False,
    out: Path = Path("runs/speed.json"),
    plot: Path | None = None,
) -> None:
    """Time of bare layers and whole training steps: reversible, torch's own, and torch's own checkpointed.

    Without options it measures where we have set ourselves goals, in about five minutes.

    Args:
        quick: two of the shapes and one row by itself, within a minute, beside torch's plain layers alone.
        sweep: T from 20 to 10,000, H from 128 to 1100, B from 1 to 64, one layer and two; takes an hour and 6 GB.
        threads: thread counts, each in a process of its own.
        rounds: of which the median is taken, at least 7.
        backend: of the reversible layers.
        markdown: print tables for a README.
        out: file that the figures go to as JSON.
        plot: PNG, by default beside the figures; --sweep draws time against length, and ratios to NAME-ratios.png.
    """
    from revtune.program.bench import speed_plot, speed_table
    from revtune.program.bench.tables import Markdown, Terminal
    from revtune.program.files import write

    check(quick, sweep, threads, rounds, backend)
    check_place(out)
    plot = out.with_suffix(".png") if plot is None else plot
    check_place(plot)
    plots = [plot, *([plot.with_stem(plot.stem + "-ratios")] if sweep else [])]
    page = Markdown() if markdown else Terminal()
    cases = tuple(plan(quick=quick, sweep=sweep))
    records: list[Record] = []
    with drafts(out, *plots) as (figures, *drawn):
        for count in threads:
            coming = measured(Job(cases=cases, threads=count, rounds=rounds, backend=backend, turn=TURN))
            for kind, group in groupby(cases, key=lambda case: case.kind):
                done = []
                for case in group:
                    with page.waiting(f"{case.kind} at {case.sizes}, {speed_table.on(count)}"):
                        done.append(next(coming))
                    so_far = {**facts(rounds, backend), "records": records + done}
                    write(figures, json.dumps(so_far, indent=1).encode())
                speed_table.show(page, kind, count, done)
                records += done
        if sweep:
            speed_table.show_lines(page, records)
        for path, draw in zip(drawn, speed_plot.PLOTS[sweep], strict=True):
            write(path, draw(records))
    speed_table.conclude(page, records, [out, *plots])


def measured(job: Job) -> Iterator[Record]:
    """What a worker finds out, case by case.

    Raises:
        Problem: when it fails, with its last words.
    """
    return worker.records(
        "revtune.program.bench.speed", job.text(), [f"the {case.kind} at {case.sizes}" for case in job.cases]
    )


def work(job: Job) -> Iterator[Record]:
    """Measure in this process."""
    torch.set_num_threads(job.threads)
    ran = {ours: backend_seen(Contestant(cell=ours, backend=job.backend)) for ours, _ in PAIRS}
    for case in job.cases:
        yield {**timed(case, job), "threads": job.threads, "backend": ran}


def timed(case: Case, job: Job) -> Record:
    """Seconds of each contestant's turns, round by round."""
    torch.manual_seed(1)
    runs = entrants(case, job.backend)
    repeats = warmed_up(runs, job.turn)
    seconds = turns(runs, job.rounds, repeats)
    return {**dataclasses.asdict(case), "repeats": repeats, "seconds": seconds}


def facts(rounds: int, backend: Backend) -> dict[str, Any]:
    """What the figures depend on."""
    versions = {"revtune": rt.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {**versions, "processor": processor(), "processors": processors(), "rounds": rounds, "backend": backend}


def check(quick: bool, sweep: bool, threads: tuple[int, ...], rounds: int, backend: Backend) -> None:
    """Raise `Problem` for options that fit neither each other nor this machine."""
    if quick and sweep:
        raise Problem("--quick and --sweep exclude each other", code=2)
    check_turns(threads, rounds)
    try:
        backend_seen(Contestant(cell="RevGRU", backend=backend))
    except (ValueError, RuntimeError) as error:
        if backend == "auto":
            raise
        raise Problem(f"--backend {backend}: {native.first_line(str(error))}") from error


if __name__ == "__main__":
    for found in work(Job.of(sys.argv[1])):
        print(json.dumps(found), flush=True)
