"""How time and memory are measured: turns of contestants, peaks of resident memory."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping

import torch

from revtune.program.bench.speed_entrants import Run
from revtune.program.errors import Problem
from revtune.program.machine import processors
from revtune.reversible.meter import ResidentGauge


def peak_of(step: Callable[[], object], device: torch.device) -> int:
    """The most bytes in use during a step above those in use before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    gauge = ResidentGauge()
    step()
    return gauge.peak()


def keep_to(threads: int) -> None:
    """Use this many threads on as many processors, since the kernel counts pages up to 32 a processor inexactly."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


TURN = 0.05


MOST_REPEATS = 50


LEAST_ROUNDS = 7


THREADS = tuple(range(1, min(2, processors()) + 1))


def warmed_up(runs: Mapping[str, Run], turn: float, clock: Callable[[], float] = time.perf_counter) -> int:
    """How often a contestant runs in a turn, after each has run once: as often as fills the first one's turn."""
    for run in runs.values():
        run()
    first, began = next(iter(runs.values())), clock()
    first()
    return min(MOST_REPEATS, math.ceil(turn / max(clock() - began, 1e-9)))


def turns(
    runs: Mapping[str, Run],
    rounds: int,
    repeats: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds a run, by contestant and round; every other round goes backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs.items())
    for _ in range(rounds):
        for name, run in order:
            began = clock()
            for _ in range(repeats):
                run()
            seconds[name].append((clock() - began) / repeats)
        order.reverse()
    return seconds


def check_turns(threads: tuple[int, ...], rounds: int) -> None:
    """Raise `Problem` for thread counts that this machine has not, and for too few rounds."""
    if not threads or min(threads) < 1 or max(threads) > processors():
        there = f"1 to {processors()}, the processors of this machine"
        raise Problem(f"--threads must be from {there}, got {' '.join(map(str, threads)) or 'none'}", code=2)
    if rounds < LEAST_ROUNDS:
        raise Problem(f"--rounds must be at least {LEAST_ROUNDS} for a median to mean something, got {rounds}", code=2)
