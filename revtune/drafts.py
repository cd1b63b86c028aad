"""What a measurement writes: under names of its own until all is there, so that older figures last until then."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

from revtune.places import check_place
from revtune.problem import Problem


@contextlib.contextmanager
def drafts(*places: Path) -> Iterator[list[Path]]:
    """Files to write to, each beside its place, which it takes when the block ends.

    A block that fails leaves the places as they were and what was written in the drafts, and says so on stderr.

    Raises:
        Problem: when two places are the same, or one cannot be written; before the block, or when the disk refuses.
    """
    real = [os.path.realpath(place) for place in places]
    for place, path in zip(places, real, strict=True):
        check_place(place)
        if real.count(path) > 1:
            raise Problem(f"figures and plots would all go to {place}; give --out and --plot different names", code=2)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(draft(place)) for place in places]


@contextlib.contextmanager
def draft(place: Path) -> Iterator[Path]:
    """One of `drafts`."""
    path = place.with_name(f"{place.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("xb").close()
    except OSError as error:
        raise Problem(f"cannot write {place}: {error.strerror}") from error
    try:
        yield path
        move(path, place)
    finally:
        let_go(path)


def move(path: Path, place: Path) -> None:
    """Put a draft in its place."""
    try:
        os.replace(path, place)
    except OSError as error:
        raise Problem(f"cannot write {place}: {error.strerror}") from error


def let_go(path: Path) -> None:
    """Say that a draft is left with something in it, or remove an empty one."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size:
            print(f"revtune: what was measured so far is in {path}", file=sys.stderr)
        else:
            path.unlink()
