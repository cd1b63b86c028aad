"""Where a command writes: files, and none that it reads or writes besides."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from revtune.problem import Problem

Taken = tuple[Path | int, str]
"""A place, or the number of an open file, and what it is."""


def check_place(place: Path) -> None:
    """Raise `Problem` when something other than a file is there."""
    if place.exists() and not place.is_file():
        raise Problem(f"cannot write {place}: it is no regular file")


def check_apart(places: Mapping[str, Path | None], taken: Iterable[Taken]) -> None:
    """Raise `Problem` when a place, by the name of its option, is one that is taken or another option's."""
    known = list(taken)
    for name, place in places.items():
        if place is not None:
            if what := next((what for other, what in known if same(place, other)), None):
                raise Problem(f"--{name} must be a file of its own, but {place} {what}", code=2)
            known.append((place, f"is what --{name} goes to"))


def same(place: Path, other: Path | int) -> bool:
    """Whether two places, or a place and an open file, are the same regular file, or would be."""
    if isinstance(other, Path) and os.path.realpath(place) == os.path.realpath(other):
        return True
    with contextlib.suppress(OSError):
        return place.is_file() and os.path.samestat(place.stat(), os.stat(other))
    return False
