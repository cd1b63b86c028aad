"""Cost against length: straight lines through the times of one contestant at all lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from revtune.program.bench.contestants import Shape
from revtune.program.bench.speed_cases import CaseKind, along
from revtune.program.bench.worker import Record

Point = tuple[int, float]
"""Steps, and the seconds that they take."""


@dataclass(frozen=True)
class Line:
    """A contestant's median seconds by steps, and the line start + slope * steps that fits them best."""

    name: str
    kind: CaseKind
    threads: int
    layers: int
    points: list[Point]
    start: float
    slope: float

    def at(self, steps: int) -> float:
        """Seconds on the line."""
        return self.start + self.slope * steps

    @property
    def deviation(self) -> float:
        """The largest share by which a time is off the line."""
        return max(abs(self.at(steps) / seconds - 1) for steps, seconds in self.points)


def fit(points: list[Point]) -> tuple[float, float]:
    """Start and slope of the line with the least squares of relative errors, so that short lengths count as well."""
    weights = [1 / seconds**2 for _, seconds in points]
    total = sum(weights)
    x = sum(w * steps for w, (steps, _) in zip(weights, points, strict=True)) / total
    y = sum(w * seconds for w, (_, seconds) in zip(weights, points, strict=True)) / total
    spread = sum(w * (steps - x) ** 2 for w, (steps, _) in zip(weights, points, strict=True))
    slope = sum(w * (s - x) * (t - y) for w, (s, t) in zip(weights, points, strict=True)) / spread
    return y - slope * x, slope


def lines(records: list[Record]) -> Iterator[Line]:
    """A line for each contestant, kind, thread count and number of layers with at least three lengths."""
    points_by_line: dict[tuple[str, CaseKind, int, int], list[Point]] = {}
    for record in records:
        shape = Shape(**record["shape"])
        if along("steps", shape):
            for name, seconds in record["seconds"].items():
                key = (name, record["kind"], record["threads"], shape.layers)
                points_by_line.setdefault(key, []).append((shape.steps, median(seconds)))
    for key, points in points_by_line.items():
        if len(points) > 2:  # two points always lie on a line
            yield Line(*key, points, *fit(points))
