"""Memory and time of training steps whose loss is one of a whole sequence: `rewind_outputs` beside nn.GRU and its head.

    python -m benchmarks.whole_sequences [--rounds 5] [--steps 2000]

CTC of letters, and a policy with values: advantages weigh the actions' likelihoods. Contestants take turns, each in a
process of its own, which measures as training_step.py tells. Medians are told.

    python -m benchmarks.whole_sequences JOB     the figures of a job as JSON; `worker.outcome` runs it

Shapes: T steps, B rows, I inputs, H hidden, N numbers that the head gives.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from benchmarks.training_step import in_turns, measured, ratios
from revtune.program.bench import worker
from revtune.program.bench.measuring import keep_to

Net = Literal["RevGRU", "nn.GRU"]
Loss = Literal["ctc", "policy"]
NETS: tuple[Net, ...] = ("RevGRU", "nn.GRU")
INPUTS = 40


@dataclass(frozen=True, kw_only=True)
class Job(worker.Job):
    """A training step to be measured, and how often it is timed."""

    net: Net
    loss: Loss
    steps: int = 2000
    rows: int = 16
    hidden: int = 256
    given: int = 30
    letters: int = 50
    timed: int = 3


class Contestant(nn.Module):
    """A net and its head, as a user of either writes them."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.rnn = rt.RevGRU(INPUTS, job.hidden) if job.net == "RevGRU" else nn.GRU(INPUTS, job.hidden)
        self.head = nn.Linear(job.hidden, job.given + 1)

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, I) to (T, B, N + 1)."""
        if isinstance(self.rnn, rt.RevGRU):
            outputs: Tensor = rt.rewind_outputs(self.rnn, x, readout=self.head)[0]
        else:
            outputs = self.head(self.rnn(x)[0])
        return outputs


def ctc(job: Job) -> Callable[[Tensor], Tensor]:
    """CTC of random letters; the number beside the letters is the blank's."""
    targets = torch.randint(1, job.given + 1, (job.rows, job.letters))
    steps, counts = torch.full((job.rows,), job.steps), torch.full((job.rows,), job.letters)
    return lambda outputs: F.ctc_loss(outputs.log_softmax(-1), targets, steps, counts)


def policy(job: Job) -> Callable[[Tensor], Tensor]:
    """Likelihoods of random actions, weighed by advantages; the number beside their scores is the value."""
    returns, actions = torch.randn(job.steps, job.rows), torch.randint(job.given, (job.steps, job.rows, 1))

    def loss(outputs: Tensor) -> Tensor:
        scores, values = outputs[..., :-1], outputs[..., -1]
        likelihoods = scores.log_softmax(-1).gather(-1, actions).squeeze(-1)
        surprises = returns - values
        return (surprises.square() - likelihoods * surprises.detach()).mean()

    return loss


LOSSES: dict[Loss, Callable[[Job], Callable[[Tensor], Tensor]]] = {"ctc": ctc, "policy": policy}


def work(job: Job) -> dict[str, float]:
    """Bytes of "memory" and "seconds" of a step, measured in this process."""
    keep_to(job.threads)
    torch.manual_seed(0)
    model, x, loss = Contestant(job), torch.randn(job.steps, job.rows, INPUTS), LOSSES[job.loss](job)

    return measured(model, lambda: loss(model(x)).backward(), job.timed)


def compared(loss: Loss, rounds: int, **sizes: int) -> dict[str, float]:
    """Medians over rounds: bytes of each net by its name, and of ours over torch's "memory" and "time"."""
    jobs = {f"{net} under {loss}": Job(net=net, loss=loss, **sizes) for net in NETS}
    found = dict(zip(NETS, in_turns("benchmarks.whole_sequences", jobs, rounds).values(), strict=True))
    return ratios(*found.values()) | {net: median(each["memory"] for each in of) for net, of in found.items()}


def main(args: Sequence[str] | None = None) -> None:
    """Measure both losses."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(args)
    for loss in LOSSES:
        found = compared(loss, asked.rounds, steps=asked.steps, threads=asked.threads)
        told = ", ".join(f"{net} {found[net] / 2**20:.1f} MiB" for net in NETS)
        print(f"{loss}: {told}: {found['memory']:.3f} of the memory in {found['time']:.2f} of the time", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        print(json.dumps(work(Job.of(sys.argv[1]))))
    else:
        main()
