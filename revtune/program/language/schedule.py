"""Learning rates and segment lengths as functions of the step alone, so that a run that goes on stays the same run."""

from __future__ import annotations

import random

from revtune.program.language.config import Learning
from revtune.program.runs.schedule import scheduled

SHORTEST = 5


def segment_length(learning: Learning, step: int) -> int:
    """Tokens of a stream in a step: N(T, spread), one time in 20 N(T / 2, spread) (Merity et al. 2018, section 5)."""
    if not learning.length_spread:
        return learning.length
    draw = random.Random(f"{learning.seed}/{step}")
    center = learning.length / (2 if draw.random() < 0.05 else 1)
    return max(SHORTEST, round(draw.gauss(center, learning.length_spread)))


def learning_rate(learning: Learning, step: int, *, length: int, falls: int) -> float:
    """Learning rate of a step, from 0, that reads `length` tokens after `falls` plateaus."""
    rate = learning.lr * min(1.0, (step + 1) / max(1, learning.warmup))
    if learning.length_spread:
        rate *= length / learning.length
    done = max(0.0, (step - learning.warmup) / max(1, learning.steps - learning.warmup))
    return scheduled(rate, learning.schedule, done=done, falls=falls)
