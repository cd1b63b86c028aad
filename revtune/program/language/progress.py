"""How far a run of a language model has come."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Progress:
    """How far a run has come.

    Args:
        step: updates done.
        position: row of the streams that the next segment begins with.
        falls: how often the learning rate was lowered on a plateau.
        stale: validations since the last better one, or since the last fall.
        best: lowest validation loss in nats, and `best_step`, when it was.
    """

    step: int = 0
    position: int = 0
    falls: int = 0
    stale: int = 0
    best: float | None = None
    best_step: int = 0

    def check(self, rows: int) -> None:
        """Raise `ValueError` for the first value that no run over streams of so many rows can have."""
        bounds = {"step": 2**31, "position": rows - 2, "falls": self.step, "stale": self.step, "best_step": self.step}
        for name, most in bounds.items():
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= most:
                raise ValueError(f"{name} must be an integer from 0 to {most}, got {value!r}")
        if self.best is not None and (type(self.best) is not float or not math.isfinite(self.best)):
            raise ValueError(f"best must be a finite number or null, got {self.best!r}")
