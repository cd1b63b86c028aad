"""Measurements read for showing: what cannot be read is left out and told of, and long lines get fewer points."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from revtune.program.files import read_bytes

JsonObject = dict[str, Any]

Points = list[tuple[float, float]]

KEPT = 0.95
"""Share of the mean so far in the next one, as on the terminal: a mean over about the last 20 steps."""


def read(path: Path) -> tuple[list[JsonObject], str]:
    """The JSON objects of a file, one a line, and a sentence on what is missing; empty where all is there."""
    if not path.exists():
        return [], f"{path.name} is not there, so that no measurement can be shown."
    *whole, rest = read_bytes(path).split(b"\n")
    lines = [parsed for line in whole if (parsed := _object(line)) is not None]
    damaged, said = len(whole) - len(lines), list[str]()
    if damaged:
        said.append(f"{damaged} of {len(whole)} lines of {path.name} are damaged and left out.")
    if rest:
        said.append(
            f"{path.name} ends in the middle of a line, which is left out: it was cut off, or is being written."
        )
    return lines, " ".join(said)


def _object(line: bytes) -> JsonObject | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and is_number(value.get("step", 0)) else None


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def column(lines: Iterable[JsonObject], *path: str) -> Points:
    """Steps and values of a number, by its keys, in the lines that have it."""
    points = []
    for line in lines:
        value: Any = line
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if is_number(value) and is_number(line.get("step")):
            points.append((line["step"], value))
    return points


def names(lines: Iterable[JsonObject], key: str) -> list[str]:
    """The names in the objects that lines have under a key, in the order in which they come."""
    found = dict[str, None]()
    for line in lines:
        if isinstance(line.get(key), dict):
            found |= dict.fromkeys(line[key])
    return list(found)


def smoothed(points: Points) -> Points:
    """A running mean, free of the first value's weight."""
    mean = weight = 0.0
    means = []
    for x, y in points:
        mean, weight = KEPT * mean + (1 - KEPT) * y, KEPT * weight + 1 - KEPT
        means.append((x, mean / weight))
    return means


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[int]:
    """The numbers of at most so many points that look as all do: the lowest and the highest of each stretch."""
    if len(points) <= most:
        return list(range(len(points)))
    stretches = max(1, most // 2 - 1)
    chosen = {0, len(points) - 1}
    for number in range(stretches):
        stretch = range(number * len(points) // stretches, (number + 1) * len(points) // stretches)
        chosen |= {min(stretch, key=lambda at: points[at][1]), max(stretch, key=lambda at: points[at][1])}
    return sorted(chosen)


def later(points: Sequence[tuple[float, float]], elapsed: dict[float, float]) -> list[float]:
    """Seconds at each point, by those that have passed at each step; none unless they are known at all of them."""
    return [elapsed[x] for x, _ in points] if all(x in elapsed for x, _ in points) else []
