"""Held-out loss over time, and when it was as low as another."""

from __future__ import annotations

from statistics import median

from revtune.program.studies.json_files import Facts

Curve = list[tuple[float, float]]


def curve(validations: list[Facts], clock: str) -> Curve:
    """Seconds and the best held-out loss from then on, wherever it gets better."""
    best, points = float("inf"), []
    for facts in validations:
        if facts["loss"] < best:
            best = facts["loss"]
            points.append((facts[clock], best))
    return points


def at(points: Curve, seconds: float) -> float:
    """The best held-out loss after so many seconds; infinite before the first."""
    return min((loss for when, loss in points if when <= seconds), default=float("inf"))


def goal(rows: list[Facts], seed: int) -> float:
    """The lowest held-out loss of all searchers at a seed; infinite without any."""
    searchers = [this for row in rows if "trials" in row["runs"][0] for this in row["runs"] if this["seed"] == seed]
    return min((this["valid"]["loss"] for this in searchers), default=float("inf"))


def reached(this: Facts, wanted: float) -> float | None:
    """Seconds after which a run's held-out loss was as low as wanted; None if it never was."""
    return next((when for when, loss in this["curve"] if loss <= wanted), None) if wanted < float("inf") else None


def middle(row: Facts, *path: str) -> float:
    """The median over seeds of a figure."""
    found = []
    for this in row["runs"]:
        for key in path:
            this = this[key]
        found.append(this)
    return float(median(found))
