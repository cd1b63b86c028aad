"""`revtune bench tuning`: what tuning costs, as time and memory of a step over those of the plain network's.

All steps are whole: forward, loss, backward and update. The plain network has torch's own layers and the same
regularizers at fixed values. Time is measured as `revtune.speed` does: all of a case take turns in one process. Memory
is measured as `revtune.bench` does, in a process for each step: the peak of resident anonymous memory during the step,
gradients included, above what was resident before, when weights and optimizers were there.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

import torch

from revtune.program.bench import speed, worker
from revtune.program.bench.measuring import LEAST_ROUNDS, THREADS, TURN, check_turns, keep_to, peak_of, turns, warmed_up
from revtune.program.bench.tuning_cases import NETS, TUNED, Case, Net, Step, case_of
from revtune.program.bench.tuning_entrants import entrant, entrants
from revtune.program.errors import Problem
from revtune.program.files import drafts

Record = dict[str, Any]


WARM_UP = 2
"""Steps before those whose memory counts: optimizers make their state in the first."""


LOOKS, PROCESSES = 5, 3
"""Steps whose memory counts, and processes."""


LITTLE, MORE_PROCESSES = 4_000_000, 6
"""Bytes below which freed pages that stay resident blur a tenth of them, and how many processes more are asked then."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process measures: times of all steps of these cases, or the memory of one step of the only one."""

    cases: tuple[Case, ...]
    threads: int
    rounds: int = LEAST_ROUNDS
    turn: float = TURN
    step: Step | None = None

    def text(self) -> str:
        """The job for a worker's command line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def of(cls, text: str) -> Job:
        """The job that a worker was given."""
        facts = json.loads(text)
        return cls(**{**facts, "cases": tuple(map(Case.of, facts["cases"]))})


def tuning(
    *,
    nets: tuple[Net, ...] = tuple(NETS),
    threads: tuple[int, ...] = THREADS,
    rounds: int = LEAST_ROUNDS,
    markdown: bool = False,
    out: Path = Path("runs/tuning.json"),
    plot: Path | None = None,
) -> None:
    """Time and memory of STN's and Delta-STN's steps, over those of the plain network's: about five minutes.

    Args:
        nets: recipes whose networks are measured, at the recipes' default sizes.
        threads: thread counts, each in a process of its own; memory is measured with the first.
        rounds: of which the median is taken, at least 7.
        markdown: print tables for a README.
        out: file that the figures go to as JSON.
        plot: PNG, by default beside the figures.
    """
    from revtune.program.bench import tuning_results as cost_plot
    from revtune.program.bench import tuning_results as cost_table
    from revtune.program.bench.speed_table import on
    from revtune.program.bench.tables import Markdown, Terminal
    from revtune.program.files import write

    check(nets, threads, rounds)
    plot = out.with_suffix(".png") if plot is None else plot
    page = Markdown() if markdown else Terminal()
    cases = tuple(map(case_of, dict.fromkeys(nets)))
    times: list[Record] = []
    memories: list[Record] = []
    with drafts(out, plot) as (figures, drawn):

        def save() -> None:
            write(figures, json.dumps({**facts(rounds), "times": times, "memories": memories}, indent=1).encode())

        for count in threads:
            coming = timed(Job(cases=cases, threads=count, rounds=rounds, turn=TURN))
            for case in cases:
                with page.waiting(f"{case.label}, {on(count)}"):
                    times.append(next(coming))
                save()
            cost_table.show_times(page, [one for one in times if one["threads"] == count])
        for case in cases:
            with page.waiting(f"memory of {case.label}"):
                memories.append(remembered(case, threads[0]))
            save()
        cost_table.show_memories(page, memories)
        write(drawn, cost_plot.goals(times, memories))
    cost_table.conclude(page, times, memories, [out, plot])


def timed(job: Job) -> Iterator[Record]:
    """Times of each case, from a worker."""
    return worker.records("revtune.program.bench.tuning", job.text(), [case.label for case in job.cases])


def remembered(case: Case, threads: int) -> Record:
    """Bytes of each step of a case, each the median of some workers.

    Raises:
        Problem: one fails, with its last words.
    """
    needed: dict[str, int] = {}
    steps: tuple[Step, ...] = ("plain", *TUNED)
    for step in steps:
        job = Job(cases=(case,), threads=threads, step=step).text()
        outcomes = [worker.outcome("revtune.program.bench.tuning", job) for _ in range(PROCESSES)]
        if all(found.get("bytes", LITTLE) < LITTLE for found in outcomes):
            outcomes += [worker.outcome("revtune.program.bench.tuning", job) for _ in range(MORE_PROCESSES)]
        if failed := next((found["error"] for found in outcomes if "error" in found), None):
            raise Problem(f"memory of {case.label}, {step}, could not be measured: {failed}")
        needed[step] = median_low(found["bytes"] for found in outcomes)
    return {**dataclasses.asdict(case), "threads": threads, "bytes": needed}


def work(job: Job) -> Iterator[Record]:
    """Measure in this process."""
    if job.step is not None:
        yield {"bytes": peak(job.cases[0], job.step, job.threads)}
        return
    torch.set_num_threads(job.threads)
    for case in job.cases:
        torch.manual_seed(1)
        runs = entrants(case)
        repeats = warmed_up(runs, job.turn)
        seconds = turns(runs, job.rounds, repeats)
        yield {**dataclasses.asdict(case), "threads": job.threads, "repeats": repeats, "seconds": seconds}


def peak(case: Case, step: Step, threads: int) -> int:
    """The most bytes in use during a step above those in use before it, the median of some steps."""
    keep_to(threads)
    torch.manual_seed(1)
    run = entrant(case, step)
    for _ in range(WARM_UP):
        run()
    return median_low(peak_of(run, torch.device("cpu")) for _ in range(LOOKS))


def facts(rounds: int) -> Record:
    """What the figures depend on."""
    return {name: value for name, value in speed.facts(rounds, "auto").items() if name != "backend"}


def check(nets: tuple[Net, ...], threads: tuple[int, ...], rounds: int) -> None:
    """Raise `Problem` for options that do not fit this machine, and where it cannot measure memory."""
    if not nets:
        raise Problem(f"--nets must be some of {' '.join(NETS)}, got none", code=2)
    check_turns(threads, rounds)
    if not Path("/proc/self/clear_refs").exists():
        raise Problem("resident memory is read from Linux's /proc, which is not here")


if __name__ == "__main__":
    for record in work(Job.of(sys.argv[1])):
        print(json.dumps(record), flush=True)
