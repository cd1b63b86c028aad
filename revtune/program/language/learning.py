"""How a language model learns: the length of its segments and its learning rate are functions of the step alone.

A run that goes on then stays the same run.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from revtune.program.runs.schedule import FALL, scheduled
from revtune.program.tasks import task
from revtune.program.tasks.task import Rule, Schedule

SHORTEST = 5
"""Tokens of a segment whose length is drawn."""


@dataclass(frozen=True, kw_only=True)
class Learning(task.Learning):
    """How it learns."""

    steps: int = 1600
    """Weight updates after which a run ends, and over which a cosine falls; in a contest runs end so under a
    cosine alone, and earlier when their time is spent."""
    batch: int = 32
    """Streams of text read side by side."""
    length: int = 64
    """Tokens of a stream in one step, the span of truncated backpropagation."""
    length_spread: float = 0.0
    """Standard deviation of that length in tokens; then one step in 20 is half as long and lr follows the length."""
    optimizer: Rule = "adam"
    """Update rule."""
    lr: float = 8e-3
    """Learning rate at its highest."""
    lr_too: bool = False
    """Tune that rate in the same run by Mechanic (Cutkosky et al. 2023), so that --lr hardly matters; the schedule acts
    on top."""
    momentum: float = 0.0
    """Momentum of sgd."""
    schedule: Schedule = "cosine"
    """cosine falls to a twentieth over the run; plateau divides by 4 when validation stops improving."""
    warmup: int = 30
    """Steps over which the learning rate rises from nothing."""
    patience: int = 5
    """Validations in a row without a better one before a plateau lowers the learning rate; a run never ends early."""
    clip: float = 1.0
    """Largest norm of the gradient, all parameters together."""
    weight_decay: float = 0.0
    """L2 penalty of the optimizer."""
    valid_every: int = 320
    """Steps between validations; the best one's weights are kept."""
    valid_batch: int = 64
    """Streams that validation and test text are cut into; a short text into fewer."""
    save_every: int = 25
    """Steps between checkpoints, from which a run that was stopped or killed goes on."""
    threads: int = 1
    """Threads of torch; small nets gain little from more, and lose much on busy cores."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1 ..."""
    seed: int = 1
    """Seed of weights, masks and segment lengths."""

    def length_of(self, step: int) -> int:
        """Tokens of a stream in a step: N(T, spread), 1 time in 20 N(T / 2, spread) (Merity et al. 2018, section 5)."""
        if not self.length_spread:
            return self.length
        draw = random.Random(f"{self.seed}/{step}")
        center = self.length / (2 if draw.random() < 0.05 else 1)
        return max(SHORTEST, round(draw.gauss(center, self.length_spread)))

    def rate(self, step: int, falls: int, fall: float = FALL) -> float:
        """The learning rate of a step, from 0 on, after `falls` plateaus that each divide it by `fall`."""
        rate = self.lr * min(1.0, (step + 1) / max(1, self.warmup))
        if self.length_spread:
            rate *= self.length_of(step) / self.length
        done = max(0.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return scheduled(rate, self.schedule, done=min(1.0, done), falls=falls, fall=fall)

    def of_rule(self) -> dict[str, float]:
        """The settings of the update rule, by argument of torch's."""
        return {**super().of_rule(), "weight_decay": self.weight_decay}
