"""Memory of a translator's training step, measured: of all of it, and of encoder and decoder by themselves.

Each is the peak of resident anonymous memory above what was there before, less the gradients that remain, as in
`revtune bench memory`; a first run, which does not count, has taken what a process takes once. The encoder by itself
goes forward, and back from gradients of its final state and of what the decoder attends to. The decoder by itself has
attention, softmax and loss, and starts from encoder outputs that are there already. What an encoder holds is there once
it has gone forward: its outputs, and what it will go back by.

    python -m benchmarks.translation_memory JOB     the figures of a job as JSON; `worker.outcome` runs it

Shapes: S = T steps, B sentences, no padding.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from revtune.program.bench import worker
from revtune.program.bench.measuring import gradient_bytes, keep_to, peak_of
from revtune.program.data.buckets import Batch
from revtune.program.translation.translator import Net, State, Translator, build
from revtune.program.typed import read_typed
from revtune.reversible.meter import ResidentGauge


@dataclass(frozen=True, kw_only=True)
class Job:
    """A translator and its batch."""

    net: Net
    source_words: int
    target_words: int
    steps: int = 26
    batch: int = 64
    threads: int = 1


def measured(job: Job) -> dict[str, Any]:
    """Bytes of "step", "encoder", "decoder" and "held", found in a process of its own; of one that fails, "error"."""
    return worker.outcome("benchmarks.translation_memory", json.dumps(dataclasses.asdict(job)))


def work(job: Job) -> dict[str, int]:
    """Measure in this process."""
    keep_to(job.threads)
    torch.manual_seed(1)
    model = build(job.net, job.source_words, job.target_words).train()
    batch = random_batch(job)
    annotations, state = model.encoded(batch.source, batch.source_lengths)
    leaves = leaf(annotations), tuple(map(leaf, state)) if isinstance(state, tuple) else leaf(state)

    def encoder() -> None:
        total(*model.encoded(batch.source, batch.source_lengths)).backward()

    parts: dict[str, Callable[[], object]] = {
        "step": lambda: model.loss(batch).backward(), "encoder": encoder,
        "decoder": lambda: model.decoded(batch, *leaves).backward(),
    }  # fmt: skip
    held = {"held": kept(lambda: model.encoded(batch.source, batch.source_lengths))}
    return held | {name: needed(model, run) for name, run in parts.items()}


def random_batch(job: Job) -> Batch:
    """Sentences of random words, all equally long."""
    shape = job.steps, job.batch
    source, targets = torch.randint(job.source_words, shape), torch.randint(job.target_words, shape)
    lengths = torch.full((job.batch,), job.steps)
    return Batch(source, lengths, torch.randint(job.target_words, shape), targets, lengths)


def leaf(value: Tensor) -> Tensor:
    """A copy with a gradient of its own."""
    return value.detach().clone().requires_grad_()


def total(annotations: Tensor, state: State) -> Tensor:
    """A number that all encoder outputs have a gradient of."""
    states = state if isinstance(state, tuple) else (state,)
    return annotations.sum() + sum((part.sum() for part in states), annotations.new_zeros(()))


def kept(run: Callable[[], object]) -> int:
    """Bytes that a run's outputs hold, the graph behind them included."""
    gauge = ResidentGauge()
    outputs = run()
    held = gauge.now()
    del outputs
    return held


def needed(model: Translator, run: Callable[[], object]) -> int:
    """Bytes that a run takes at its peak beyond its gradients."""
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        peak = peak_of(run, torch.device("cpu"))
    return peak - gradient_bytes(model.parameters())


if __name__ == "__main__":
    print(json.dumps(work(read_typed(Job, json.loads(sys.argv[1])))))
