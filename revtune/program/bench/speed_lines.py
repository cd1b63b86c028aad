"""Cost against length: straight lines through the times of one contestant at all lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from revtune.program.bench.contestants import Shape
from revtune.program.bench.speed_cases import Kind, along

Record = dict[str, Any]


Point = tuple[int, float]


@dataclass(frozen=True)
class Line:
    """A contestant's median seconds by steps, and the line start + slope * steps next to them."""

    name: str
    kind: Kind
    threads: int
    layers: int
    points: list[Point]
    start: float
    slope: float

    def at(self, steps: int) -> float:
        """Seconds on the line."""
        return self.start + self.slope * steps

    @property
    def off(self) -> float:
        """The largest share by which a time is off the line."""
        return max(abs(self.at(steps) / seconds - 1) for steps, seconds in self.points)


def fit(points: list[Point]) -> tuple[float, float]:
    """Start and slope of the line that has the least squares of relative errors, so that short lengths count too."""
    weights = [1 / seconds**2 for _, seconds in points]
    total = sum(weights)
    x = sum(w * steps for w, (steps, _) in zip(weights, points, strict=True)) / total
    y = sum(w * seconds for w, (_, seconds) in zip(weights, points, strict=True)) / total
    spread = sum(w * (steps - x) ** 2 for w, (steps, _) in zip(weights, points, strict=True))
    slope = sum(w * (s - x) * (t - y) for w, (s, t) in zip(weights, points, strict=True)) / spread
    return y - slope * x, slope


def lines(records: list[Record]) -> Iterator[Line]:
    """A line for each contestant, kind, thread count and number of layers with at least three lengths."""
    found: dict[tuple[str, Kind, int, int], list[Point]] = {}
    for record in records:
        shape = Shape(**record["shape"])
        if along("steps", shape):
            for name, seconds in record["seconds"].items():
                key = (name, record["kind"], record["threads"], shape.layers)
                found.setdefault(key, []).append((shape.steps, median(seconds)))
    for key, points in found.items():
        if len(points) > 2:
            yield Line(*key, points, *fit(points))
