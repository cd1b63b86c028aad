"""Memory and time of one training step, measured in a process of its own, and contestants that take turns.

A step that does not count comes first, then one whose peak of resident anonymous memory is taken above what was there
before, less the gradients that remain, then those that are timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import nn

from revtune.program.bench import worker
from revtune.program.bench.measuring import gradient_bytes, peak_of

Figures = dict[str, float]
"""Bytes of "memory" and "seconds"."""


def measured(model: nn.Module, step: Callable[[], object], timed: int) -> Figures:
    """What a step takes that leaves gradients in a model, timed so often; the median."""
    step()
    model.zero_grad(set_to_none=True)
    memory = peak_of(step, torch.device("cpu")) - gradient_bytes(model.parameters())
    seconds = []
    for _ in range(timed):
        model.zero_grad(set_to_none=True)
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return {"memory": memory, "seconds": median(seconds)}


def in_turns(module: str, jobs: Mapping[str, worker.Job], rounds: int) -> dict[str, list[Figures]]:
    """The figures of each contestant in each round, every other of which goes backward.

    Args:
        module: whose command line is given a job and prints its figures.
        jobs: of the contestants, by name.
        rounds: how many.

    Raises:
        RuntimeError: a worker fails; it names the contestant.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for number in range(rounds):
        for name in list(jobs) if number % 2 == 0 else list(jobs)[::-1]:
            figures = worker.outcome(module, jobs[name].text())
            if "error" in figures:
                raise RuntimeError(f"{name}: {figures['error']}")
            found[name].append(figures)
    return found


def ratios(ours: list[Figures], theirs: list[Figures]) -> Figures:
    """Medians over rounds of ours over theirs, in "memory" and "time"."""
    return {
        name: median(one[key] / other[key] for one, other in zip(ours, theirs, strict=True))
        for name, key in (("memory", "memory"), ("time", "seconds"))
    }
