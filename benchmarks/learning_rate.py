"""Ways to tune a learning rate in the run that it is for, from rates that are ten times off, beside fixed rates.

    python -m benchmarks.learning_rate --data FOLDER [--out FILE] [--seeds 1 2 3] [--only WAY]

FOLDER holds `ptb/ptb.valid.txt`, whose bytes a small net learns in 600 updates. A line of JSON is added to --out for
each run; those that are there are not run again. `mechanic` is `--lr-too`; each other way stands here by its equation.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from revtune.program.data.text import Corpus, segment
from revtune.program.data.text_sources import Text, load
from revtune.program.errors import Problem
from revtune.program.language.config import Config, Net, check
from revtune.program.language.evaluate import evaluate
from revtune.program.language.learning import Learning
from revtune.program.language.trainer import Trainer
from revtune.program.layers import Model
from revtune.program.tasks.task import Rule
from revtune.program.tuning import Tune
from revtune.tuning.tuner.mechanic import MEMORIES, Mechanic

GOOD: dict[Rule, float] = {"adam": 0.03, "sgd": 8.0}
"""What is taken as good; the last of the jobs are its neighbours."""

OFF = (0.1, 1.0, 10.0)
"""What the good rate is multiplied by, for the ways to begin with."""


@dataclass(frozen=True)
class Job:
    """A run: which way tunes the rate, of which net, under which optimizer, from which rate."""

    way: str
    model: Model
    optimizer: Rule
    tune: Tune
    lr: float
    seed: int

    def config(self, data: Path, steps: int) -> Config:
        """The run's settings."""
        learning = Learning(
            steps=steps, batch=16, length=32, lr=self.lr, optimizer=self.optimizer, seed=self.seed,
            lr_too=self.way == "mechanic",
        )  # fmt: skip
        text = Text(source="file", file=data / "ptb/ptb.valid.txt")
        net = Net(model=self.model, embedding=32, hidden=64)
        config = Config(recipe="text", text=text, net=net, learning=learning, tune=self.tune, tuned_from=0.005)
        check(config)
        return config


class Way:
    """Scales an optimizer's updates by `factor`: `before` it moves the parameters, and `after`.

    Args:
        trainer: whose learner's rate is tuned; it has not begun.
    """

    factor = 1.0

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, optimizer = trainer, trainer.learner.optimizer
        self.parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        self.first = copies(self.parameters)
        optimizer.register_step_pre_hook(self._note)
        optimizer.register_step_post_hook(self._move)

    @torch.no_grad()
    def _note(self, *_: Any) -> None:
        self.old = copies(self.parameters)
        self.before([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters])

    @torch.no_grad()
    def _move(self, *_: Any) -> None:
        self.after([p - old for p, old in zip(self.parameters, self.old, strict=True)])

    def before(self, grads: list[Tensor]) -> None:
        """Take in the gradients."""

    def after(self, updates: list[Tensor]) -> None:
        """Move the parameters from where they were by what the optimizer's updates become."""
        for p, old, update in zip(self.parameters, self.old, updates, strict=True):
            p.copy_(old + self.factor * update)


class Hypergradient(Way):
    """log rate -= cos(g_valid(x_t), x_t - x_{t-5}), every 5 updates (after Baydin et al. 2018, on held-out text)."""

    every = 5

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.steps, self.mark = 0, self.first

    def after(self, updates: list[Tensor]) -> None:
        super().after(updates)
        self.steps += 1
        if self.steps % self.every == 0:
            moved = [p - mark for p, mark in zip(self.parameters, self.mark, strict=True)]
            grads = held_out_gradient(self.trainer, self.parameters, self.steps // self.every - 1)
            cosine = dot(grads, moved) / (math.sqrt(dot(grads, grads) * dot(moved, moved)) + 1e-30)
            self.factor *= math.exp(-cosine)
            self.mark = copies(self.parameters)


class Decayed(Way):
    """Mechanic as published, whose factor decays (Cutkosky et al. 2023, algorithm 1, lambda = 0.01), from a start."""

    start, decay = 1.0, 0.01

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.betas = torch.tensor(MEMORIES, dtype=torch.float64)
        self.m, self.v, self.r, self.s = (torch.zeros_like(self.betas) for _ in range(4))
        self.moved = [torch.zeros_like(p) for p in self.parameters]
        self.factor = 0.0

    def before(self, grads: list[Tensor]) -> None:
        norms = math.sqrt(dot(grads, grads)) / (math.sqrt(dot(self.parameters, self.parameters)) + 1e-8)
        h = dot(self.moved, grads) + self.decay * float(self.s.sum()) * norms * dot(self.moved, self.parameters)
        self.r = (self.betas * self.r - self.s * torch.full_like(self.m, h).clamp(-self.m, self.m)).clamp(min=0)
        self.m, self.v = (self.betas * self.m).clamp(min=abs(h)), self.betas**2 * self.v + h * h
        self.s = (self.start * self.m / len(self.betas) + self.r) / (self.v.sqrt() + 1e-30)
        self.factor = float(self.s.sum())

    def after(self, updates: list[Tensor]) -> None:
        for p, first, moved, update in zip(self.parameters, self.first, self.moved, updates, strict=True):
            moved.add_(update)
            p.copy_(first + self.factor * moved)


def decayed_from(start: float) -> type[Way]:
    """The same, from another share of the given rate."""
    return type("Decayed", (Decayed,), {"start": start})


class Prodigy(Way):
    """Adam at a rate d that is estimated, whatever is given (Mishchenko and Defazio 2023, algorithm 4)."""

    d0 = 1e-6

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.d, self.r, self.steps = self.d0, 0.0, 0
        self.s, self.m, self.v = ([torch.zeros_like(p) for p in self.parameters] for _ in range(3))

    def before(self, grads: list[Tensor]) -> None:
        self.steps += 1
        schedule = self.trainer.learner.optimizer.param_groups[0]["lr"] / self.trainer.learning.lr
        rate = self.d * schedule * math.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        away = [first - p for first, p in zip(self.first, self.parameters, strict=True)]
        self.r = math.sqrt(0.999) * self.r + self.d / self.d0 * rate * dot(grads, away)
        for g, s, m, v in zip(grads, self.s, self.m, self.v, strict=True):
            m.mul_(0.9).add_(g, alpha=0.1 * self.d)
            v.mul_(0.999).addcmul_(g, g, value=0.001 * self.d**2)
            s.mul_(math.sqrt(0.999)).add_(g, alpha=self.d / self.d0 * rate)
        self.own = [-rate * m / (v.sqrt() + self.d * 1e-8) for m, v in zip(self.m, self.v, strict=True)]
        if total := sum(float(s.abs().sum()) for s in self.s):
            self.d = max(self.d, self.r / total)
        self.factor = self.d / self.trainer.learning.lr

    def after(self, updates: list[Tensor]) -> None:
        for p, old, own in zip(self.parameters, self.old, self.own, strict=True):
            p.copy_(old + own)


def mechanic_from(start: float) -> Callable[[Trainer], Mechanic]:
    """The library's own, from another share of the given rate than `--lr-too` begins with."""
    return lambda trainer: Mechanic(trainer.learner.optimizer, start=start)


def sharing(share: float) -> Callable[[Trainer], Mechanic]:
    """The same, whose first update moves parameters by another share of their norm."""
    kind = type("Sharing", (Mechanic,), {"share": share})
    return lambda trainer: kind(trainer.learner.optimizer)


STARTS = (1.0, 0.1, 0.01, 0.001)

SHARES = (0.0001, 0.001, 0.01, 0.1, 0.3)

WAYS: dict[str, Callable[[Trainer], Way | Mechanic]] = {
    "hypergradient": Hypergradient, "decayed": Decayed, "prodigy": Prodigy,
    **{f"decayed-from-{start}": decayed_from(start) for start in (0.1, 0.01, 0.0001)},
    **{f"mechanic-from-{start}": mechanic_from(start) for start in STARTS},
    **{f"share-{share}": sharing(share) for share in SHARES},
}  # fmt: skip


def copies(parameters: Sequence[Tensor]) -> list[Tensor]:
    """What the parameters are now."""
    return [p.detach().clone() for p in parameters]


def dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The inner product of two lists of tensors."""
    return sum(float(torch.dot(a.flatten(), b.flatten())) for a, b in zip(one, other, strict=True))


def held_out_gradient(trainer: Trainer, parameters: Sequence[nn.Parameter], number: int) -> list[Tensor]:
    """The gradient of a segment's loss, 16 streams of held-out text gone through again and again."""
    rows, length = trainer.task.part("valid")[:, :16], trainer.learning.length
    inputs, targets, _ = segment(rows, number % max(1, (len(rows) - 1) // length) * length, length)
    trainer.model.eval()
    with torch.enable_grad():
        loss, _ = trainer.model.loss(inputs, targets, None)
        grads = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]


def figures(job: Job, data: Path, corpus: Corpus, steps: int) -> dict[str, Any]:
    """What a run comes to: the held-out loss in nats a byte, rates on the way, and processor seconds."""
    trainer = Trainer(job.config(data, steps), corpus)
    way: Way | Mechanic | None = WAYS[job.way](trainer) if job.way in WAYS else trainer.mechanic
    rates, began = list[float](), time.process_time()
    try:
        for step in range(1, steps + 1):
            trainer.step()
            if way and step % max(1, steps // 6) == 0:
                rates.append(float(f"{job.lr * way.factor:.3g}"))
        loss = evaluate(trainer.model, trainer.task.part("valid"), trainer.learning.length)
    except Problem:
        loss = math.inf
    told = {"loss": round(loss, 4) if math.isfinite(loss) else None, "rates": rates}
    return {**dataclasses.asdict(job), "steps": steps, **told, "seconds": round(time.process_time() - began, 1)}


def jobs(seeds: Sequence[int]) -> Iterator[Job]:
    """The runs, the most telling first."""
    for seed in seeds:
        for optimizer in GOOD:
            yield Job("fixed", "revgru", optimizer, "off", GOOD[optimizer], seed)
            for off in OFF:
                yield Job("mechanic", "revgru", optimizer, "off", round(off * GOOD[optimizer], 6), seed)
    for start in STARTS:
        for off in OFF:
            yield Job(f"mechanic-from-{start}", "revgru", "adam", "off", round(off * GOOD["adam"], 6), 1)
    for way, rates in {
        "decayed": (0.002, 0.02, 0.2), "decayed-from-0.1": (0.002, 0.02, 0.2),
        "decayed-from-0.01": (0.002, 0.01, 0.2), "decayed-from-0.0001": (0.01,),
    }.items():  # fmt: skip
        for rate in rates:
            yield Job(way, "revgru", "adam", "off", rate, 1)
    yield Job("decayed", "revgru", "sgd", "off", 40.0, 1)
    for rate in (0.01, 0.3, 0.003):
        yield Job("hypergradient", "revgru", "adam", "off", rate, 1)
    yield Job("prodigy", "revgru", "adam", "off", GOOD["adam"], 1)
    for optimizer in GOOD:
        yield Job("fixed", "lstm", optimizer, "off", GOOD[optimizer], 1)
        for off in OFF:
            yield Job("mechanic", "lstm", optimizer, "off", round(off * GOOD[optimizer], 6), 1)
    yield Job("fixed", "revgru", "adam", "stn", GOOD["adam"], 1)
    for off in OFF:
        yield Job("mechanic", "revgru", "adam", "stn", round(off * GOOD["adam"], 6), 1)
    for rate in (0.01, 0.02, 0.06):
        yield Job("fixed", "revgru", "adam", "off", rate, 1)
    for rate in (4.0, 16.0):
        yield Job("fixed", "revgru", "sgd", "off", rate, 1)
    for rate in (0.01, 0.02, 0.06):
        yield Job("fixed", "lstm", "adam", "off", rate, 1)
    for rate in (4.0, 16.0, 24.0, 32.0):
        yield Job("fixed", "lstm", "sgd", "off", rate, 1)
    nets: tuple[Model, ...] = ("revgru", "lstm")
    for share, model, optimizer in itertools.product(SHARES, nets, GOOD):
        yield Job(f"share-{share}", model, optimizer, "off", GOOD[optimizer], 1)


def main(args: Sequence[str] | None = None) -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/learning_rate/runs.jsonl")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", choices=["fixed", "mechanic", *WAYS])
    given = parser.parse_args(args)
    known = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = [{name: run[name] for name in ("steps", *Job.__annotations__)} for run in known]
    corpus: Corpus | None = None
    for job in jobs(given.seeds):
        left = {"steps": given.steps, **dataclasses.asdict(job)} not in done
        if not left or given.only not in (None, job.way):
            continue
        corpus = corpus or load(job.config(given.data, given.steps).text)
        line = json.dumps(figures(job, given.data, corpus, given.steps))
        print(line, flush=True)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        with given.out.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
