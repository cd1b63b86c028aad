"""`revtune bench speed`: time of bare layers and of whole training steps, beside torch's own.

Each thread count has a process of its own. There, at each shape, all contestants are built, take a turn that does not
count, and then take turns: a round goes through them in order and the next one backwards, so that whatever slows the
machine down slows all of them down. Where torch's layer takes less than a twentieth of a second, a turn runs all of
them several times. What counts is the ratio of two turns of one round: it holds from machine to machine where times do
not.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch

from revtune.program.bench import kept_cases, worker
from revtune.program.bench.contestants import Contestant, backend_seen
from revtune.program.bench.measuring import LEAST_ROUNDS, THREADS, TURN, check_turns, turns, warmed_up
from revtune.program.bench.speed_cases import PAIRS, SpeedCase, plan
from revtune.program.bench.speed_steps import steps_of
from revtune.program.bench.worker import Job, Record
from revtune.program.errors import Problem
from revtune.program.files import check_output, drafts, write
from revtune.program.machine import processor, processors, versions
from revtune.reversible.kernel import backend as native

Backend = Literal["auto", "reference", "native"]


@dataclass(frozen=True, kw_only=True)
class SpeedJob(Job):
    """What a process measures.

    Attributes:
        cases: in this order.
        rounds: in which each contestant takes a turn.
        backend: of the reversible layers.
        turn: seconds that a turn of torch's layer lasts at least, if `MOST_REPEATS` steps take so long.
    """

    cases: tuple[SpeedCase, ...]
    rounds: int
    backend: Backend
    turn: float


def speed(
    *,
    quick: bool = False,
    sweep: bool = False,
    threads: tuple[int, ...] = THREADS,
    rounds: int = LEAST_ROUNDS,
    backend: Backend = "auto",
    markdown: bool = False,
    out: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Time of bare layers and whole training steps: reversible, torch's own, and torch's own checkpointed.

    Without options it measures where we have set ourselves goals, in about five minutes.

    Args:
        quick: two of the shapes and one row by itself, within a minute, beside torch's plain layers alone.
        sweep: T from 20 to 10,000, H from 128 to 1100, B from 1 to 64, one layer and two; takes an hour and 6 GB.
            What its file has from before, of the same machine, version and options, is not measured again.
        threads: thread counts, each in a process of its own.
        rounds: of which the median is taken, at least 7.
        backend: of the reversible layers.
        markdown: print tables for a README.
        out: file that the figures go to as JSON; by default speed.json in runs, or speed-sweep.json.
        plot: PNG, by default beside the figures; --sweep draws time against length, and ratios to NAME-ratios.png.
    """
    # here, since a worker runs this module too, and must not load rich or matplotlib
    from revtune.program.bench import speed_plot, speed_table
    from revtune.program.bench.display import Markdown, Terminal, thread_count

    check(quick, sweep, threads, rounds, backend)
    out = out or Path(f"runs/speed{'-sweep' if sweep else ''}.json")
    check_output(out)
    plot = out.with_suffix(".png") if plot is None else plot
    check_output(plot)
    plots = [plot, *([plot.with_stem(plot.stem + "-ratios")] if sweep else [])]
    display = Markdown() if markdown else Terminal()
    cases = tuple(plan(quick=quick, sweep=sweep))
    same = circumstances(rounds, backend)
    known = kept(out, same, cases) if sweep else {}
    records = list(known.values())
    coming_ones = sum((case, count) not in known for count in threads for case in cases)
    with drafts(out, *plots) as (figures, *drafts_of_plots), display.measuring(coming_ones):
        for count in threads:
            missing = tuple(case for case in cases if (case, count) not in known)
            coming = measured(SpeedJob(cases=missing, threads=count, rounds=rounds, backend=backend, turn=TURN))
            for case in missing:
                with display.waiting(f"{case.kind} at {case.sizes}, {thread_count(count)}"):
                    records.append(next(coming))
                for path in (figures, out) if sweep else (figures,):
                    write(path, figures_of(same, records))
            of_this_count = [record for record in records if record["threads"] == count]
            for kind, group in groupby(in_order(of_this_count, cases), key=lambda record: record["kind"]):
                speed_table.show(display, kind, count, list(group))
        write(figures, figures_of(same, records))  # where nothing was missing, nothing has gone there yet
        if sweep:
            speed_table.show_lines(display, records)
        for path, draw in zip(drafts_of_plots, speed_plot.PLOTS[sweep], strict=True):
            write(path, draw(records))
    speed_table.conclude(display, records, [out, *plots])


def figures_of(same: Record, records: list[Record]) -> bytes:
    """What the file holds of all that was measured so far."""
    return json.dumps({**same, "records": records}, indent=1).encode()


def kept(out: Path, same: Record, cases: tuple[SpeedCase, ...]) -> dict[tuple[SpeedCase, int], Record]:
    """What a sweep that was cut off has measured, by case and threads.

    Raises:
        Problem: the file has other cases than these, or one of other circumstances than `same`.
    """

    def by_case(found: Any) -> dict[tuple[SpeedCase, int], Record]:
        if found != {**same, "records": found["records"]}:
            raise ValueError("measured under other circumstances")
        records = {(SpeedCase.of(record), record["threads"]): record for record in found["records"]}
        if any(case not in cases for case, _ in records):
            raise ValueError("no sweep's cases")
        return records

    return kept_cases.kept(out, "sweep of this machine, version and options", by_case)


def in_order(records: list[Record], cases: tuple[SpeedCase, ...]) -> list[Record]:
    """The records of these cases, in their order."""
    by_case = {SpeedCase.of(record): record for record in records}
    return [by_case[case] for case in cases if case in by_case]


def measured(job: SpeedJob) -> Iterator[Record]:
    """What a worker measures, case by case.

    Raises:
        Problem: it fails, with its last words.
    """
    return worker.records(__name__, job.text(), [f"the {case.kind} at {case.sizes}" for case in job.cases])


def work(job: SpeedJob) -> Iterator[Record]:
    """Measure in this process."""
    torch.set_num_threads(job.threads)
    ran = {ours: backend_seen(Contestant(cell=ours, backend=job.backend)) for ours, _ in PAIRS}
    for case in job.cases:
        yield {**timed(case, job), "threads": job.threads, "backend": ran}


def timed(case: SpeedCase, job: SpeedJob) -> Record:
    """Seconds of a step of each contestant, round by round."""
    torch.manual_seed(1)
    steps = steps_of(case, job.backend)
    repeats = warmed_up(steps, job.turn)
    seconds = turns(steps, job.rounds, repeats)
    return {**dataclasses.asdict(case), "repeats": repeats, "seconds": seconds}


def circumstances(rounds: int, backend: Backend) -> Record:
    """What the figures depend on."""
    return {**versions(), "processor": processor(), "processors": processors(), "rounds": rounds, "backend": backend}


def check(quick: bool, sweep: bool, threads: tuple[int, ...], rounds: int, backend: Backend) -> None:
    """Raise `Problem` for options that fit neither each other nor this machine."""
    if quick and sweep:
        raise Problem("--quick and --sweep exclude each other", code=2)
    check_turns(threads, rounds)
    try:
        backend_seen(Contestant(cell="RevGRU", backend=backend))
    except (ValueError, RuntimeError) as error:
        if backend == "auto":  # it falls back by itself, so this is another error
            raise
        raise Problem(f"--backend {backend}: {native.first_line(str(error))}") from error


if __name__ == "__main__":
    for record in work(SpeedJob.of(sys.argv[1])):
        print(json.dumps(record), flush=True)
