"""`revtune bench memory`: what a whole training step needs above its parameters, beside torch's own layers.

Each contestant has a process of its own, in which C's allocator gives freed blocks back alike for all. There a warm-up
of the real B, H, V and T = 3K runs, three chunks of the real step's K; gradients are dropped; then comes the step that
counts: the peak of resident anonymous memory during it, minus what was resident before, minus the gradients that
remain. On CUDA it is the peak of allocated bytes likewise. The meter of bits runs in that step too, at our cost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import revtune as rt
from revtune.program.bench import worker
from revtune.program.bench.contestants import Contestant, Net, Shape, chunk_of
from revtune.program.bench.measuring import keep_to, peak_of
from revtune.program.bench.worker import ALLOCATOR
from revtune.program.errors import Problem
from revtune.program.files import check_place, drafts
from revtune.program.machine import processors
from revtune.reversible.kernel import backend as native

SHAPES = (
    Shape(steps=70, batch=20, hidden=650, vocabulary=10_000),
    Shape(steps=1000, batch=20, hidden=256),
    Shape(steps=10_000, batch=8, hidden=256),
)


QUICK = SHAPES[1:2]


LONG = Shape(steps=100_000, batch=8, hidden=256)


Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement: who, at what sizes, after how long a warm-up, on how many threads of which device."""

    contestant: Contestant
    shape: Shape
    warm_up: int
    threads: int
    device: Device = "cpu"

    def text(self) -> str:
        """The job for a worker's command line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def of(cls, text: str) -> Job:
        """The job that a worker was given."""
        facts = json.loads(text)
        facts["contestant"], facts["shape"] = Contestant(**facts["contestant"]), Shape(**facts["shape"])
        return cls(**facts)


def memory(
    *,
    quick: bool = False,
    long: bool = False,
    markdown: bool = False,
    out: Path = Path("runs/memory.json"),
    plot: Path | None = None,
    threads: int = 1,
    device: Device = "cpu",
) -> None:
    """A training step's memory above its parameters: reversible, torch's own, and torch's own checkpointed.

    Args:
        quick: T = 1,000 alone, within a minute.
        long: also T = 100,000 with checkpoint_every="auto", which takes long.
        markdown: print tables for a README.
        out: file that the figures go to as JSON.
        plot: PNG of memory against length; by default beside the figures, if there is more than one length.
        threads: threads of each contestant; they hardly change its memory.
        device: cpu or cuda.
    """
    from revtune.program.bench import memory_results as memory_plot
    from revtune.program.bench import memory_results as memory_table
    from revtune.program.bench.tables import Markdown, Terminal
    from revtune.program.files import write

    check(threads, device)
    page = Markdown() if markdown else Terminal()
    results: list[dict[str, Any]] = []
    check_place(out)
    if plot is None and not quick:
        plot = out.with_suffix(".png")
    with drafts(*filter(None, (out, plot))) as (figures, *drawn):
        for shape, contestants in plan(quick=quick, long=long):
            group = []
            for contestant in contestants:
                with page.waiting(f"{contestant.name} at {shape}"):
                    group.append(measured(contestant, shape, threads, device))
                write(figures, json.dumps({**facts(threads, device), "results": results + group}, indent=1).encode())
            if shape == LONG and (estimate := extrapolated(results, shape)):
                group.append(estimate)
            results += group
            memory_table.show(page, shape, group)
        write(figures, json.dumps({**facts(threads, device), "results": results}, indent=1).encode())
        for path in drawn:
            write(path, memory_plot.plot(results))
    page.say(memory_table.NOTE)
    page.tell(f"Figures: {out}")
    if plot is not None:
        page.tell(f"Plot: {plot}")


def plan(*, quick: bool, long: bool) -> Iterator[tuple[Shape, list[Contestant]]]:
    """The shapes and who competes at each."""
    for shape in QUICK if quick else SHAPES:
        pairs = (("RevGRU", "nn.GRU"), ("RevLSTM", "nn.LSTM"))
        yield (
            shape,
            [
                contestant
                for ours, theirs in pairs
                for contestant in (
                    Contestant(cell=theirs),
                    Contestant(cell=theirs, segments=True),
                    Contestant(cell=ours),
                )
            ],
        )
    if long:
        yield LONG, [Contestant(cell=cell, checkpoint_every="auto") for cell in ("RevGRU", "RevLSTM")]


def measured(contestant: Contestant, shape: Shape, threads: int, device: Device) -> dict[str, Any]:
    """What a worker found out about a contestant, or why it failed."""
    warm_up = min(shape.steps, 3 * chunk_of(contestant, shape))
    job = Job(contestant=contestant, shape=shape, warm_up=warm_up, threads=threads, device=device)
    told = {"contestant": dataclasses.asdict(contestant), "name": contestant.name, "shape": dataclasses.asdict(shape)}
    return {**told, **worker.outcome("revtune.program.bench.memory", job.text())}


def work(job: Job) -> dict[str, Any]:
    """Measure one step in this process."""
    keep_to(job.threads)
    torch.manual_seed(1)
    device, shape = torch.device(job.device), job.shape
    net = Net(job.contestant, shape).to(device)
    tokens = torch.randint(shape.vocabulary, (shape.steps + 1, shape.batch), device=device)
    net.step(tokens[: job.warm_up], tokens[1 : job.warm_up + 1])
    net.zero_grad(set_to_none=True)
    bits: dict[str, Any] = {}

    def step() -> None:
        with rt.meter() if job.contestant.reversible else contextlib.nullcontext() as used:
            net.step(tokens[:-1], tokens[1:])
        if used is not None and used.unit_steps:
            bits.update(stored=used.bits_per_unit_step, ideal=used.ideal_bits / used.unit_steps)

    peak = peak_of(step, device)
    gradients = sum(weight.grad.nbytes for weight in net.parameters() if weight.grad is not None)
    parameters = sum(weight.nbytes for weight in net.parameters())
    needed = {"bytes": peak - gradients, "peak": peak, "gradients": gradients, "parameters": parameters}
    return {**needed, "bits_per_unit_step": bits, "warm_up": job.warm_up}


def extrapolated(results: list[dict[str, Any]], shape: Shape) -> dict[str, Any] | None:
    """What nn.GRU would need at a longer shape, from its bytes a step at the longest one measured."""
    plain = [one for one in results if one["name"] == "nn.GRU" and "bytes" in one]
    same = [one for one in plain if {**one["shape"], "steps": shape.steps} == dataclasses.asdict(shape)]
    if not same:
        return None
    longest = max(same, key=lambda one: one["shape"]["steps"])
    needed = longest["bytes"] * shape.steps // longest["shape"]["steps"]
    return {**longest, "shape": dataclasses.asdict(shape), "bytes": needed, "estimate": True}


def facts(threads: int, device: Device) -> dict[str, Any]:
    """What the figures depend on."""
    chip = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    versions = {"revtune": rt.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {**versions, "device": device, "chip": chip, "threads": threads, "allocator": ALLOCATOR}


def check(threads: int, device: Device) -> None:
    """Raise `Problem` where this machine cannot measure."""
    if not 1 <= threads <= processors():
        there = f"1 to {processors()}, the processors of this machine"
        raise Problem(f"--threads must be from {there}, got {threads}", code=2)
    if device == "cuda" and not torch.cuda.is_available():
        raise Problem("--device cuda: torch finds no CUDA device here", code=2)
    if device == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise Problem("resident memory is read from Linux's /proc, which is not here; --device cuda needs none")
    if device == "cpu":
        native.load()


if __name__ == "__main__":
    print(json.dumps(work(Job.of(sys.argv[1]))))
