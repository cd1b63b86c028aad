"""Files: read whole, written whole or not at all, and locked by one process at a time.

Every file that the program reads as a whole is read by `read_bytes` or `read_text`, which never wait and always end.
"""

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

Taken = tuple[Path | int, str]
"""A file, or the number of an open one, and what it is taken for, as `check_distinct` says it after the path."""

TRIED = 65_536
"""Bytes that a disk must take before hours are measured, more than figures and plots have."""


def regular(path: Path) -> Path:
    """The path of a regular file, or of nothing yet; reading a pipe or a device might never end.

    Raises:
        Problem: when something else is there, or the system cannot tell.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return path
    except (OSError, ValueError) as error:  # ValueError: the path has a NUL
        raise Problem(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        raise Problem(f"cannot read {path}: {'Is a directory' if stat.S_ISDIR(mode) else 'it is no regular file'}")
    return path


def read_bytes(path: Path) -> bytes:
    """A file's bytes, as many as it has when it is opened: one that grows meanwhile comes to an end too.

    Raises:
        Problem: it cannot be read or is no regular file.
    """
    try:
        # O_NONBLOCK: what became a pipe since it was looked at is not waited for
        with open(os.open(regular(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Problem(f"cannot read {path}: it is no regular file")
            return file.read(status.st_size)
    except MemoryError as error:
        raise Problem(f"cannot read {path}: it has more bytes than there is memory") from error
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}") from error


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        Problem: it cannot be read, is no regular file, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem(f"{path} is no text: {error}") from error


def write(path: Path, content: bytes) -> None:
    """Replace a file's content in one step; when that fails, what was there stays.

    Raises:
        Problem: for a full disk and whatever else the system refuses.
    """
    partial, saved = path.with_name(path.name + ".partial"), path.exists()
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # before the rename, or a crash may leave the name with nothing behind it
        os.replace(partial, path)
        _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        intact = "; what was saved before is intact" if saved else ""
        raise Problem(f"cannot write {path}: {error.strerror}{intact}") from error


def _sync(folder: Path) -> None:
    """Have the folder's entries on disk, the renamed one among them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs, by its file `lock`.

    Raises:
        Problem: another process has locked it, or it cannot be written to.
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


def check_spelling(path: Path) -> None:
    """Raise `Problem` for a path that is no UTF-8: what a run is written with has no name for it."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise Problem(f"{name} is no path that revtune can use: it must be UTF-8; rename it", code=2) from error


def absolute(path: Path | None) -> Path | None:
    """A path made absolute, to be found from any folder later; None stays None.

    Raises:
        Problem: it is no UTF-8, as where the folder that the program was started in is none.
    """
    if path is not None:
        check_spelling(path := path.absolute())
    return path


def check_output(path: Path) -> None:
    """Raise `Problem` when a path to write to is no UTF-8, or that of something other than a file."""
    check_spelling(path)
    if path.exists() and not path.is_file():
        raise Problem(f"cannot write {path}: it is no regular file")


def check_distinct(outputs: Mapping[str, Path | None], taken: Iterable[Taken]) -> None:
    """Raise `Problem` when a path to write to, by the name of its option, is taken or another option's."""
    known = list(taken)
    for option, path in outputs.items():
        if path is not None:
            if use := next((use for other, use in known if same_file(path, other)), None):
                raise Problem(f"--{option} must be a file of its own, but {path} {use}", code=2)
            known.append((path, f"is what --{option} goes to"))


def same_file(path: Path, other: Path | int) -> bool:
    """Whether two paths, or a path and an open file, are the same regular file, or would be once written."""
    if isinstance(other, Path) and os.path.realpath(path) == os.path.realpath(other):
        return True
    with contextlib.suppress(OSError):
        return path.is_file() and os.path.samestat(path.stat(), os.stat(other))
    return False


@contextlib.contextmanager
def drafts(*paths: Path) -> Iterator[list[Path]]:
    """Files to write to in place of others, which they replace when the block ends.

    When the block fails, the others stay as they were, what was written to the drafts stays beside them, and a line on
    stderr says so.

    Raises:
        Problem: when two paths are the same, or one cannot be written; before the block, or when the disk refuses.
    """
    real = [os.path.realpath(path) for path in paths]
    for path, target in zip(paths, real, strict=True):
        check_output(path)
        if real.count(target) > 1:
            raise Problem(f"figures and plots would all go to {path}; give --out and --plot different names", code=2)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_draft(path)) for path in paths]


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[Path]:
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")  # several benchmarks may write at once
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.open("xb").close()
        _try_disk(draft)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise Problem(f"cannot write {path}: {error.strerror}") from error
    try:
        yield draft
        _replace(draft, path)
    finally:
        _leave(draft)


def _try_disk(draft: Path) -> None:
    """Write to a draft and empty it again, since a full disk still takes files without content."""
    with draft.open("wb") as file:
        file.write(bytes(TRIED))
        file.flush()
        os.fsync(file.fileno())
        file.truncate(0)


def _replace(draft: Path, path: Path) -> None:
    try:
        os.replace(draft, path)
    except OSError as error:
        raise Problem(f"cannot write {path}: {error.strerror}") from error


def _leave(draft: Path) -> None:
    """Say that a draft with something in it is left, or remove an empty one."""
    with contextlib.suppress(FileNotFoundError):  # it has replaced its file
        if draft.stat().st_size:
            print(f"revtune: what was measured so far is in {draft}", file=sys.stderr)
        else:
            draft.unlink()
