"""Memory and time of training steps of bidirectional taggers: `rewind_loss` beside nn.LSTM and nn.GRU.

    python -m benchmarks.both_directions [--rounds 3] [--shapes LAYERS,T,B,H ...] [--out FOLDER]

Each of our nets stands beside its torch namesake. They take turns, each in a process of its own, which measures as
training_step.py tells. Medians are told, and with --out kept as table.md there.

    python -m benchmarks.both_directions JOB     the figures of a job as JSON; `worker.outcome` runs it

Shapes: T steps, B rows, I inputs, H hidden in each direction, N tags.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from benchmarks.training_step import in_turns, measured, ratios
from revtune.program.bench import worker
from revtune.program.bench.measuring import keep_to

Net = Literal["RevLSTM", "RevGRU", "nn.LSTM", "nn.GRU"]
PAIRS: tuple[tuple[Net, Net], ...] = (("RevLSTM", "nn.LSTM"), ("RevGRU", "nn.GRU"))
INPUTS, TAGS = 100, 20


class Shape(NamedTuple):
    """A tagger."""

    layers: int
    steps: int
    rows: int
    hidden: int

    @classmethod
    def of(cls, text: str) -> Shape:
        """One from its numbers on a command line, such as 1,1000,20,256."""
        return cls(*map(int, text.split(",")))

    def __str__(self) -> str:
        return f"{self.layers}, {self.steps:,}, {self.rows}, {self.hidden}"


SHAPES = (Shape(1, 1000, 20, 256), Shape(2, 1000, 20, 256), Shape(1, 4000, 8, 128))


@dataclass(frozen=True, kw_only=True)
class Job(worker.Job):
    """A training step to be measured, and how often it is timed."""

    net: Net
    layers: int
    steps: int
    rows: int
    hidden: int
    timed: int = 3


class Tagger(nn.Module):
    """A net and its head, as a user of either writes them."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        owner = rt if job.net.startswith("Rev") else nn
        self.rnn = getattr(owner, job.net.removeprefix("nn."))(INPUTS, job.hidden, job.layers, bidirectional=True)
        self.head = (rt.LinearCrossEntropy if owner is rt else nn.Linear)(2 * job.hidden, TAGS)

    def forward(self, x: Tensor, tags: Tensor) -> Tensor:
        """The mean loss of tags (T, B) for x (T, B, I)."""
        if isinstance(self.head, rt.LinearCrossEntropy):
            return rt.rewind_loss(self.rnn, x, tags, readout=self.head)[0]
        return F.cross_entropy(self.head(self.rnn(x)[0]).flatten(0, 1), tags.flatten())


def work(job: Job) -> dict[str, float]:
    """Bytes of "memory" and "seconds" of a step, measured in this process."""
    keep_to(job.threads)
    torch.manual_seed(0)
    model, x, tags = Tagger(job), torch.randn(job.steps, job.rows, INPUTS), torch.randint(TAGS, (job.steps, job.rows))
    return measured(model, lambda: model(x, tags).backward(), job.timed)


def compared(shape: Shape, pair: tuple[Net, Net], rounds: int, threads: int = 1) -> str:
    """A line of the table."""
    jobs: dict[str, worker.Job] = {net: Job(net=net, threads=threads, **shape._asdict()) for net in pair}
    ours, theirs = in_turns("benchmarks.both_directions", jobs, rounds).values()
    memory, other = (median(each["memory"] for each in of) / 1e6 for of in (ours, theirs))
    ratio = ratios(ours, theirs)
    return (
        f"| {pair[0]} beside {pair[1]} | {shape} | {memory:.1f} | {other:.1f} | {1 / ratio['memory']:.1f} | "
        f"{ratio['time']:.2f} |"
    )


def main(args: Sequence[str] | None = None) -> None:
    """Measure all shapes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", type=Shape.of, nargs="+", default=SHAPES, help="as in 1,1000,20,256")
    parser.add_argument("--out", type=Path, help="a folder that the table is kept in")
    asked = parser.parse_args(args)
    lines = ["| both directions | layers, T, B, H | ours, MB | torch's, MB | times less | of the time |",
             "|---|---|---:|---:|---:|---:|"]  # fmt: skip
    print(*lines, sep="\n", flush=True)
    for shape in asked.shapes:
        for pair in PAIRS:
            lines.append(compared(shape, pair, asked.rounds, asked.threads))
            print(lines[-1], flush=True)
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        print(json.dumps(work(Job.of(sys.argv[1]))))
    else:
        main()
