"""How time and memory are measured: contestants take turns; peaks of memory are taken above what was there before."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from revtune.program.errors import Problem
from revtune.program.machine import processors
from revtune.reversible.meter import ResidentGauge

StepFunction = Callable[[], object]
"""Takes one step of a contestant."""

TURN = 0.05
"""Seconds that a turn lasts at least: long beside the clock's resolution and a call from Python."""

MOST_REPEATS = 50
"""Steps of a turn at most, so that the fastest cases do not wait for the clock."""

LEAST_ROUNDS = 7
"""Rounds of which the median is taken: three of them may be disturbed."""

THREADS = tuple(range(1, min(2, processors()) + 1))
"""Thread counts that are measured by default: one and two, where there are two processors."""


def warmed_up(steps: Mapping[str, StepFunction], turn: float, clock: Callable[[], float] = time.perf_counter) -> int:
    """How many steps make a turn, after each contestant has taken one: as many as fill the turn of the first."""
    for step in steps.values():
        step()
    first, began = next(iter(steps.values())), clock()
    first()
    return min(MOST_REPEATS, math.ceil(turn / max(clock() - began, 1e-9)))  # a clock may not have gone on at all


def turns(
    steps: Mapping[str, StepFunction],
    rounds: int,
    repeats: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of a step, by contestant and round; every other round goes backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps.items())
    for _ in range(rounds):
        for name, step in order:
            began = clock()
            for _ in range(repeats):
                step()
            seconds[name].append((clock() - began) / repeats)
        order.reverse()  # a machine that slows down steadily then slows all down alike
    return seconds


def check_turns(threads: tuple[int, ...], rounds: int) -> None:
    """Raise `Problem` for thread counts that this machine does not have, and for too few rounds."""
    check_threads(threads)
    if rounds < LEAST_ROUNDS:
        raise Problem(f"--rounds must be at least {LEAST_ROUNDS} for a median to mean something, got {rounds}", code=2)


def check_threads(threads: tuple[int, ...]) -> None:
    """Raise `Problem` for thread counts that this machine does not have."""
    if not threads or min(threads) < 1 or max(threads) > processors():
        given = " ".join(map(str, threads)) or "none"
        raise Problem(
            f"--threads must be from 1 to {processors()}, the processors of this machine, got {given}", code=2
        )


def peak_of(step: StepFunction, device: torch.device) -> int:
    """The most bytes in use during a step above those in use before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    gauge = ResidentGauge()
    step()
    return gauge.peak()


def gradient_bytes(weights: Iterable[Tensor]) -> int:
    """The bytes of the gradients that weights have, which outlive a step and so are no part of its peak."""
    return sum(weight.grad.nbytes for weight in weights if weight.grad is not None)


def keep_to(threads: int) -> None:
    """Use this many threads on as many processors, since the kernel counts pages up to 32 a processor inexactly."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def check_resident(advice: str = "") -> None:
    """Raise `Problem`, which ends in the advice, where the peak of resident memory cannot be read."""
    if not Path("/proc/self/clear_refs").exists():
        raise Problem(f"resident memory is read from Linux's /proc, which is not here{advice}")
