"""Held-out loss over time, when it was as low as another, and medians over seeds."""

from __future__ import annotations

from functools import reduce
from operator import getitem
from statistics import median

from revtune.program.studies.compare.contest import RIVALS
from revtune.program.studies.json_files import JsonObject

Curve = list[tuple[float, float]]


def curve(validations: list[JsonObject], clock: str) -> Curve:
    """Seconds and the best held-out loss from then on, wherever it gets better."""
    best, points = float("inf"), []
    for facts in validations:
        if facts["loss"] < best:
            best = facts["loss"]
            points.append((facts[clock], best))
    return points


def best_after(points: Curve, seconds: float) -> float:
    """The best held-out loss after so many seconds; infinite before the first."""
    return min((loss for when, loss in points if when <= seconds), default=float("inf"))


def goal(rows: list[JsonObject], seed: int) -> float:
    """The lowest held-out loss of all searchers and the population at a seed; infinite without any."""
    runs = [run for row in rows if row["contestant"] in RIVALS for run in row["runs"] if run["seed"] == seed]
    return min((run["valid"]["loss"] for run in runs), default=float("inf"))


def reached(run: JsonObject, goal: float) -> float | None:
    """Seconds after which a run's held-out loss was as low as a goal; None if it never was, or the goal is infinite."""
    return next((when for when, loss in run["curve"] if loss <= goal), None) if goal < float("inf") else None


def seeds_of(row: JsonObject) -> set[int]:
    """The seeds that a contestant has run at."""
    return {run["seed"] for run in row["runs"]}


def seeds_differ(rows: list[JsonObject]) -> bool:
    """Whether some contestants have run at other seeds than others."""
    return any(seeds_of(row) != seeds_of(rows[0]) for row in rows)


def median_of(row: JsonObject, *path: str, seeds: set[int] | None = None) -> float:
    """The median over seeds, by default all that there are, of a figure, by its keys in a run."""
    runs = [run for run in row["runs"] if seeds is None or run["seed"] in seeds]
    return float(median(reduce(getitem, path, run) for run in runs))
