"""`revtune bench memory`: what a whole training step needs above its parameters, beside torch's own layers.

Each contestant has a process of its own, like a user's: no setting of C's allocator is changed. There a warm-up runs
first, of the real B, H and V and of T = 3K steps, three chunks of the real step's K, and its gradients are dropped.
Then comes the step that counts: the peak of resident anonymous memory during it, minus what was resident before, minus
the gradients that remain. On CUDA it is the peak of allocated bytes instead. The meter of bits runs in that step as
well, and what it takes counts as ours.
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
from revtune.program.bench.contestants import Contestant, ContestantNet, Shape, chunk_of
from revtune.program.bench.measuring import check_resident, check_threads, gradient_bytes, keep_to, peak_of
from revtune.program.bench.speed_cases import PAIRS
from revtune.program.bench.worker import Job, Record
from revtune.program.errors import Problem
from revtune.program.files import check_output, drafts, write
from revtune.program.machine import versions
from revtune.reversible.kernel import backend as native

SHAPES = (
    Shape(steps=70, batch=20, hidden=650, vocabulary=10_000),
    Shape(steps=1000, batch=20, hidden=256),
    Shape(steps=10_000, batch=8, hidden=256),
)
"""Words as in PTB, then two longer sequences of bytes."""

QUICK = SHAPES[1:2]

LONG = Shape(steps=100_000, batch=8, hidden=256)
"""Measured with the reversible layers alone; what nn.GRU would need is extrapolated to it."""

PROCESSES = 3
"""Processes of which the middle one counts: what C's heap keeps differs from one to the next, by a megabyte or two."""

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class MemoryJob(Job):
    """One measurement: who, at what sizes, after how many steps of warm-up, on which device."""

    contestant: Contestant
    shape: Shape
    warm_up: int
    device: Device = "cpu"


def memory(
    *,
    quick: bool = False,
    long: bool = False,
    sweep: bool = False,
    tasks: bool = False,
    ordinary: bool = False,
    markdown: bool = False,
    out: Path | None = None,
    plot: Path | None = None,
    threads: int = 1,
    device: Device = "cpu",
) -> None:
    """A training step's memory above its parameters: reversible, torch's own, and torch's own checkpointed.

    Args:
        quick: T = 1,000 alone, within a minute.
        long: also T = 100,000 with checkpoint_every="auto", which takes long.
        sweep: instead, each way of training at T from 100 to 100,000, B from 1 to 256 and H from 16 to 1,100, and
            whether its peak keeps to its bound; takes hours, and goes on where the file ends.
        tasks: instead, ten shapes of real work, from rows of pixels to half an hour of ECG, and their seconds; takes
            half an hour, and goes on where the file ends.
        ordinary: give the reversible layers torch's readout, nn.Linear and F.cross_entropy, too, in the place of a
            LinearCrossEntropy.
        markdown: print tables for a README.
        out: file that the figures go to as JSON; by default memory.json in runs, memory-sweep.json or
            memory-tasks.json.
        plot: PNG of memory against length; by default beside the figures, if there is more than one length.
        threads: threads of each contestant; they hardly change its memory.
        device: cpu or cuda.
    """
    # here, since a worker runs this module too, and must not load rich or matplotlib
    from revtune.program.bench import memory_results, memory_sweep, memory_tasks
    from revtune.program.bench.display import Markdown, Terminal

    check(threads, device)
    display = Markdown() if markdown else Terminal()
    for asked, option, measure in ((sweep, "sweep", memory_sweep.sweep), (tasks, "tasks", memory_tasks.tasks)):
        if asked:
            check_alone(option, device, quick=quick, long=long, ordinary=ordinary, plot=plot, tasks=sweep and tasks)
            measure(display, out or Path(f"runs/memory-{option}.json"), threads)
            return
    out = out or Path("runs/memory.json")
    results: list[Record] = []
    check_output(out)
    if plot is None and not quick:
        plot = out.with_suffix(".png")
    planned = list(plan(quick=quick, long=long, ordinary=ordinary))
    count = sum(len(contestants) for _, contestants in planned)
    with drafts(*filter(None, (out, plot))) as (figures, *plots), display.measuring(count):
        for shape, contestants in planned:
            group = []
            for contestant in contestants:
                with display.waiting(f"{contestant.name} at {shape}"):
                    group.append(typical(contestant, shape, threads, device))
                write(figures, _figures(results + group, threads, device))
            if shape == LONG and (estimate := extrapolated(results, shape)):
                group.append(estimate)
            results += group
            memory_results.show(display, shape, group)
        write(figures, _figures(results, threads, device))
        for path in plots:
            write(path, memory_results.plot(results))
    display.say(memory_results.NOTE)
    display.tell(f"Figures: {out}")
    if plot is not None:
        display.tell(f"Plot: {plot}")


def plan(*, quick: bool, long: bool, ordinary: bool) -> Iterator[tuple[Shape, list[Contestant]]]:
    """The shapes, and who competes at each."""
    contestants = [
        contestant
        for ours, theirs in PAIRS
        for contestant in (
            Contestant(cell=theirs), Contestant(cell=theirs, segments=True), Contestant(cell=ours, ordinary=ordinary)
        )
    ]  # fmt: skip
    for shape in QUICK if quick else SHAPES:
        yield shape, contestants
    if long:
        yield LONG, [Contestant(cell=cell, checkpoint_every="auto", ordinary=ordinary) for cell, _ in PAIRS]


def typical(contestant: Contestant, shape: Shape, threads: int, device: Device) -> Record:
    """The middle one of what several processes measured, with the range of all; why one failed, if any did."""
    return worker.middle([measured(contestant, shape, threads, device) for _ in range(PROCESSES)])


def measured(contestant: Contestant, shape: Shape, threads: int, device: Device) -> Record:
    """What a worker measured of a contestant, or why it failed."""
    warm_up = min(shape.steps, 3 * chunk_of(contestant, shape))
    job = MemoryJob(contestant=contestant, shape=shape, warm_up=warm_up, threads=threads, device=device)
    who = {"contestant": dataclasses.asdict(contestant), "name": contestant.name, "shape": dataclasses.asdict(shape)}
    return {**who, **worker.outcome(__name__, job.text())}


def work(job: MemoryJob) -> Record:
    """Measure one step in this process."""
    keep_to(job.threads)
    torch.manual_seed(1)
    device, shape = torch.device(job.device), job.shape
    net = ContestantNet(job.contestant, shape).to(device)
    tokens = torch.randint(shape.vocabulary, (shape.steps + 1, shape.batch), device=device)
    net.step(tokens[: job.warm_up], tokens[1 : job.warm_up + 1])
    net.zero_grad(set_to_none=True)
    bits: dict[str, Any] = {}

    def step() -> None:
        with rt.meter() if job.contestant.reversible else contextlib.nullcontext() as meter:
            net.step(tokens[:-1], tokens[1:])
        if meter is not None and meter.unit_steps:
            bits.update(stored=meter.bits_per_unit_step, ideal=meter.ideal_bits / meter.unit_steps)

    peak = peak_of(step, device)
    gradients = gradient_bytes(net.parameters())
    parameters = sum(weight.nbytes for weight in net.parameters())
    needed = {"bytes": peak - gradients, "peak": peak, "gradients": gradients, "parameters": parameters}
    return {**needed, "bits_per_unit_step": bits, "warm_up": job.warm_up}


def extrapolated(results: list[Record], shape: Shape) -> Record | None:
    """What nn.GRU would need at a longer shape, from its bytes a step at the longest one measured."""
    wanted = dataclasses.asdict(shape)
    plain = [result for result in results if result["name"] == "nn.GRU" and "bytes" in result]
    shorter = [result for result in plain if {**result["shape"], "steps": shape.steps} == wanted]
    if not shorter:
        return None
    longest = max(shorter, key=lambda result: result["shape"]["steps"])
    needed = longest["bytes"] * shape.steps // longest["shape"]["steps"]
    return {**longest, "shape": wanted, "bytes": needed, "estimate": True}


def _figures(results: list[Record], threads: int, device: Device) -> bytes:
    return json.dumps({**circumstances(threads, device), "results": results}, indent=1).encode()


def circumstances(threads: int, device: Device) -> Record:
    """What the figures depend on."""
    chip = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    return {**versions(), "device": device, "chip": chip, "threads": threads}


def check(threads: int, device: Device) -> None:
    """Raise `Problem` where this machine cannot measure."""
    check_threads((threads,))
    if device == "cuda" and not torch.cuda.is_available():
        raise Problem("--device cuda: torch finds no CUDA device here", code=2)
    if device == "cpu":
        check_resident("; --device cuda needs none")
        native.load()  # a kernel that the environment asks for and cannot have is told before measuring


def check_alone(
    option: str, device: Device, *, quick: bool, long: bool, ordinary: bool, plot: Path | None, tasks: bool
) -> None:  # fmt: skip
    """Raise `Problem` for options that a sweep, or the table of tasks, does not have."""
    given = {
        "--quick": quick, "--long": long, "--ordinary": ordinary, "--plot": plot is not None, "--tasks": tasks,
        "--device cuda": device == "cuda",
    }  # fmt: skip
    for other in (other for other, asked in given.items() if asked):
        raise Problem(f"--{option} has shapes and a plot of its own, and runs on the CPU; leave {other} out", code=2)


if __name__ == "__main__":
    print(json.dumps(work(MemoryJob.of(sys.argv[1]))))
