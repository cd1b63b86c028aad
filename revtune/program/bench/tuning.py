"""`revtune bench tuning`: what tuning costs, as time and memory of a step over those of the plain network's.

All steps are whole: forward, loss, backward and update. The plain network has torch's own layers and the same
regularizers at fixed values. Time is measured as in `speed`: all contestants of a case take turns in one process.
Memory is measured as in `memory`, in a process for each step: the peak of resident anonymous memory during the step,
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

import torch

from revtune.program.bench import speed, worker
from revtune.program.bench.measuring import (
    LEAST_ROUNDS,
    THREADS,
    TURN,
    check_resident,
    check_turns,
    keep_to,
    peak_of,
    turns,
    warmed_up,
)
from revtune.program.bench.tuning_cases import NETS, TUNED, StepKind, TunedNet, TuningCase, case_of
from revtune.program.bench.tuning_steps import learner_of, step_of, steps_of
from revtune.program.bench.worker import Job, Record
from revtune.program.errors import Problem
from revtune.program.files import drafts, write

WARM_UP = 2
"""Steps before those whose memory counts: optimizers make their state in the first."""

LOOKS, PROCESSES = 5, 3
"""Steps of a process whose memory is read, and processes; the median of each counts."""

LITTLE, MORE_PROCESSES = 4_000_000, 6
"""Below so many bytes, freed pages that stay resident blur a tenth of them; then so many more processes measure."""


@dataclass(frozen=True, kw_only=True)
class TuningJob(Job):
    """What a process measures: times of all steps of these cases, or the memory of one step of the only one."""

    cases: tuple[TuningCase, ...]
    rounds: int = LEAST_ROUNDS
    turn: float = TURN
    step: StepKind | None = None


def tuning(
    *,
    nets: tuple[TunedNet, ...] = tuple(NETS),
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
    # here, since a worker runs this module too, and must not load rich or matplotlib
    from revtune.program.bench import tuning_results
    from revtune.program.bench.display import Markdown, Terminal, thread_count

    check(nets, threads, rounds)
    plot = out.with_suffix(".png") if plot is None else plot
    display = Markdown() if markdown else Terminal()
    cases = tuple(map(case_of, dict.fromkeys(nets)))
    times: list[Record] = []
    memories: list[Record] = []
    with drafts(out, plot) as (figures, drawing), display.measuring((len(threads) + 1) * len(cases)):

        def save() -> None:
            content = {**circumstances(rounds), "times": times, "memories": memories}
            write(figures, json.dumps(content, indent=1).encode())

        for count in threads:
            coming = timed(TuningJob(cases=cases, threads=count, rounds=rounds, turn=TURN))
            for case in cases:
                with display.waiting(f"{case.label}, {thread_count(count)}"):
                    times.append(next(coming))
                save()
            tuning_results.show_times(display, [record for record in times if record["threads"] == count])
        for case in cases:
            with display.waiting(f"memory of {case.label}"):
                memories.append(remembered(case, threads[0]))
            save()
        tuning_results.show_memories(display, memories)
        write(drawing, tuning_results.goals(times, memories))
    tuning_results.conclude(display, times, memories, [out, plot])


def timed(job: TuningJob) -> Iterator[Record]:
    """The times of each case, from a worker."""
    return worker.records(__name__, job.text(), [case.label for case in job.cases])


def remembered(case: TuningCase, threads: int) -> Record:
    """Bytes of each step of a case, each the median of some workers.

    Raises:
        Problem: one fails, with its last words.
    """
    needed: dict[str, int] = {}
    steps: tuple[StepKind, ...] = ("plain", *TUNED)
    for step in steps:
        job = TuningJob(cases=(case,), threads=threads, step=step).text()
        outcomes = [worker.outcome(__name__, job) for _ in range(PROCESSES)]
        if all(outcome.get("bytes", LITTLE) < LITTLE for outcome in outcomes):
            outcomes += [worker.outcome(__name__, job) for _ in range(MORE_PROCESSES)]
        if failed := next((outcome["error"] for outcome in outcomes if "error" in outcome), None):
            raise Problem(f"memory of {case.label}, {step}, could not be measured: {failed}")
        needed[step] = median_low(outcome["bytes"] for outcome in outcomes)
    return {**dataclasses.asdict(case), "threads": threads, "bytes": needed}


def work(job: TuningJob) -> Iterator[Record]:
    """Measure in this process."""
    if job.step is not None:
        yield {"bytes": peak(job.cases[0], job.step, job.threads)}
        return
    torch.set_num_threads(job.threads)
    for case in job.cases:
        torch.manual_seed(1)
        steps = steps_of(case)
        repeats = warmed_up(steps, job.turn)
        seconds = turns(steps, job.rounds, repeats)
        yield {**dataclasses.asdict(case), "threads": job.threads, "repeats": repeats, "seconds": seconds}


def peak(case: TuningCase, step: StepKind, threads: int) -> int:
    """The most bytes in use during a step above those in use before it, the median of some steps."""
    keep_to(threads)
    torch.manual_seed(1)
    take = step_of(learner_of(case, step), step)
    for _ in range(WARM_UP):
        take()
    return median_low(peak_of(take, torch.device("cpu")) for _ in range(LOOKS))


def circumstances(rounds: int) -> Record:
    """What the figures depend on."""
    return {name: value for name, value in speed.circumstances(rounds, "auto").items() if name != "backend"}


def check(nets: tuple[TunedNet, ...], threads: tuple[int, ...], rounds: int) -> None:
    """Raise `Problem` for options that do not fit this machine, and where it cannot measure memory."""
    if not nets:
        raise Problem(f"--nets must be some of {' '.join(NETS)}, got none", code=2)
    check_turns(threads, rounds)
    check_resident()


if __name__ == "__main__":
    for record in work(TuningJob.of(sys.argv[1])):
        print(json.dumps(record), flush=True)
