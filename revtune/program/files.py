"""Files: read whole, written whole or not at all, had by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from revtune.program.errors import Problem


def regular(path: Path) -> Path:
    """The path of a regular file, or of none that is there; a pipe or a device might never end.

    Raises:
        Problem: when something else is there, or the system cannot tell.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return path
    except (OSError, ValueError) as error:
        raise Problem(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        raise Problem(f"cannot read {path}: {'Is a directory' if stat.S_ISDIR(mode) else 'it is no regular file'}")
    return path


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


def write(path: Path, content: bytes) -> None:
    """Put content in a file's place at once; when that fails, what was there stays.

    Raises:
        Problem: for a full disk and whatever else the system refuses.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise Problem(f"cannot write {path}: {error.strerror}; what was saved before is intact") from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Have a folder for oneself in what follows, by its file `lock`.

    Raises:
        Problem: another process has it, or it cannot be written to.
    """
    path = regular(folder / "lock")
    try:
        opened = open(path, "ab")
    except OSError as error:
        raise Problem(f"cannot write {path}: {error.strerror}") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Problem(f"another process is at work in {folder}") from error
        yield


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
