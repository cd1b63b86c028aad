"""Goals that the benchmarks' ratios are compared with."""

from __future__ import annotations

from typing import NamedTuple


class Goal(NamedTuple):
    """The largest ratio that will do, and a smaller one that is within reach."""

    most: float
    reach: float | None = None

    def verdict(self, ratio: float) -> str:
        """How a ratio compares: missed, met, or both for one that also attains what is within reach."""
        if ratio > self.most:
            return "missed"
        return "both" if self.reach and ratio <= self.reach else "met"

    def __str__(self) -> str:
        return f"{self.most:.2f}" + (f"/{self.reach:.2f}" if self.reach else "")
