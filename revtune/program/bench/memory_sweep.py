"""`revtune bench memory --sweep`: whether a step's peak keeps to its bound at every shape.

Each case has a process of its own, like a user's: C's allocator is left as it is. A warm-up of three chunks comes
first. The bound is 2.5 times what the buffer holds at most at once, a chunk's budget, and the kernel's packed weights;
what is given (inputs, targets, parameters) and the parameters' gradients are left out. `rewind_outputs` may take its
outputs besides, as often as a loss of differences between steps keeps tensors as large.

Shapes: T steps, B rows, H units, K steps of a chunk, S steps between checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.program.bench import worker
from revtune.program.bench.display import Display
from revtune.program.bench.kept_cases import measured
from revtune.program.bench.measuring import gradient_bytes, keep_to, peak_of
from revtune.program.bench.worker import Job, Record
from revtune.reversible.layers.masks import BatchSpec
from revtune.reversible.layers.rnn import RevRNN
from revtune.reversible.layers.stack import DEFAULT_BUDGET, Stack
from revtune.reversible.streams.loss import segment_steps

Way = Literal["layer", "rewind_loss", "rewind_loss, checkpoints", "rewind_outputs", "rewind_encode"]

WAYS: tuple[Way, ...] = ("layer", "rewind_loss", "rewind_loss, checkpoints", "rewind_outputs", "rewind_encode")
"""A layer with output="last", and streams."""

STEPS, ROWS, UNITS, LARGEST = (100, 1_000, 10_000, 100_000), (1, 16, 256), (16, 128, 1_100), 3 * 10**8
"""T, B and H, and the most that their product may be."""

NETS: dict[str, type[rt.RevGRU] | type[rt.RevLSTM]] = {"RevGRU": rt.RevGRU, "RevLSTM": rt.RevLSTM}

STORED_SHARE = 2.5

OUTPUTS = 5
"""Tensors as large as the outputs of `rewind_outputs`: they, their differences, and the gradients of the squares of
those, of the differences, and of the outputs."""


@dataclass(frozen=True, kw_only=True)
class SweepJob(Job):
    """One case: how which net is trained, at what sizes."""

    way: Way
    net: str
    steps: int
    rows: int
    units: int

    @property
    def key(self) -> str:
        """What tells it from the other cases."""
        return f"{self.net}, {self.way}, T={self.steps}, B={self.rows}, H={self.units}"


def sweep(display: Display, out: Path, threads: int) -> None:
    """Measure all cases that the file does not have yet; it has each as soon as it is measured."""
    cases = list(plan(threads))
    records = measured(display, out, cases, measure, "sweep of memory", threads=threads)
    for way, net in product(WAYS, NETS):
        chosen = [records[case.key] for case in cases if (case.way, case.net) == (way, net)]
        display.table("Peak of a step", f"{net}, {way}", ("MB", "stored", "bound", "of it"), map(row, chosen))
    within = sum("error" not in record and record["peak"] <= record["bound"] for record in records.values())
    display.say(
        f"MB: peak above parameters, gradients, inputs and targets; stored: the most at once; bound: {STORED_SHARE} x "
        f"stored, a chunk and packed weights. Within their bounds: {within} of {len(records)}."
    )
    display.tell(f"Figures: {out}")


def measure(case: SweepJob) -> Record:
    """What a worker measured of a case, or why it failed."""
    return {**dataclasses.asdict(case), **worker.outcome(__name__, case.text())}


def plan(threads: int) -> Iterator[SweepJob]:
    """All cases, small ones first."""
    shapes = [shape for shape in product(STEPS, ROWS, UNITS) if shape[0] * shape[1] * shape[2] <= LARGEST]
    for steps, rows, units in sorted(shapes, key=lambda shape: shape[0] * shape[1] * shape[2] ** 2):
        for way, net in product(WAYS, NETS):
            yield SweepJob(way=way, net=net, steps=steps, rows=rows, units=units, threads=threads)


def row(record: Record) -> tuple[str, ...]:
    """A case as a row of its table."""
    sizes = f"{record['steps']:,}, {record['rows']}, {record['units']}"
    if "error" in record:
        return sizes, record["error"], "", "", ""
    peak, bound = record["peak"], record["bound"]
    return sizes, f"{peak / 1e6:.1f}", f"{record['stored'] / 1e6:.2f}", f"{bound / 1e6:.1f}", f"{peak / bound:.2f}"


def work(job: SweepJob) -> Record:
    """Measure a case in this process."""
    keep_to(job.threads)
    torch.manual_seed(1)
    net = NETS[job.net](1, job.units, output="last" if job.way == "layer" else "all")
    head = nn.Linear(job.units, 1)
    segment = segment_steps("auto", job.steps) if job.way.endswith("checkpoints") else None
    step = training_step(job.way, net, head, segment)
    stack = stack_of(net, job.steps, job.rows)
    chunk = stack.chunk_steps(segment or job.steps)
    x, y = torch.randn(job.steps, job.rows, 1), torch.randn(job.steps, job.rows)
    step(x[: 3 * chunk], y[: 3 * chunk])
    for parameter in (parameters := [*net.parameters(), *head.parameters()]):
        parameter.grad = None
    with rt.meter() as meter:
        peak = peak_of(lambda: step(x, y), x.device)
    gradients = gradient_bytes(parameters)
    stored = meter.stored_bits // 8
    if segment:
        state = 8 * job.rows * job.units * len(net.cell.states)
        stored = stored * segment // job.steps + -(-job.steps // segment) * state
    packed = sum(tape.weights.packed_bytes() for tape in stack.tapes)
    outputs = OUTPUTS * y.nbytes if job.way == "rewind_outputs" else 0
    bound = int(STORED_SHARE * stored) + max(DEFAULT_BUDGET, chunk * stack.step_bytes) + packed + outputs
    return {"peak": peak - gradients, "stored": stored, "bound": bound, "chunk": chunk, "packed": packed}


def stack_of(net: RevRNN, steps: int, rows: int) -> Stack:
    """What a net rewinds a batch of rows with, which knows its chunks."""
    spec = BatchSpec(rows, torch.float32, torch.device("cpu"))
    states = net.first_states(spec, None, batched=True)
    return net.assemble(steps, spec, states, None, engine=net.engine_for(net.first_weight)).stack


def training_step(way: Way, net: RevRNN, head: nn.Linear, segment: int | None) -> Callable[[Tensor, Tensor], None]:
    """A step over inputs (T, B, 1) and targets (T, B), its gradients taken."""

    def loss(h: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(head(h).squeeze(-1), y, reduction="sum")

    def step(x: Tensor, y: Tensor) -> None:
        if way == "layer":
            total = loss(net(x)[0], y[-1])
        elif way == "rewind_encode":
            state = rt.rewind_encode(net, x)[1]
            total = loss((state if isinstance(state, Tensor) else state[0])[-1].float(), y[-1])
        elif way == "rewind_outputs":
            total = rt.rewind_outputs(net, x, readout=head)[0].diff(dim=0).square().sum()
        else:
            total = rt.rewind_loss(
                net, x, y, readout=loss, reduction="sum", checkpoint_every=segment and min(segment, len(x))
            )[0]
        total.backward()

    return step


if __name__ == "__main__":
    print(json.dumps(work(SweepJob.of(sys.argv[1]))))
