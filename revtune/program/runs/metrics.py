"""The measurements of a run as JSON lines."""

from __future__ import annotations

from typing import Any
from pathlib import Path
import contextlib
import fcntl
import hashlib
import json
import os
from revtune.program.errors import Problem
from revtune.program.runs.folder import _text
from revtune.program.files import regular


def last_step(path: Path) -> int:
    """The highest step that a file of measurements tells of; 0 when there is none."""
    highest = 0
    for line in _text(path).splitlines() if path.exists() else []:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            highest = max(highest, int(json.loads(line)["step"]))
    return highest


class Metrics:
    """The measurements of a run as JSON lines, held by one process at a time.

    Args:
        path: the file; made when it is not there.
        size: bytes of it to keep, those that a checkpoint knows of.
        digest: of those bytes, as `digest()` gave it; None to keep them unchecked.

    Raises:
        Problem: when another process holds it, it cannot be written, it is shorter than that or its digest differs.
    """

    def __init__(self, path: Path, size: int, digest: str | None = None) -> None:
        self.path = path
        try:
            self.file = open(regular(path), "ab", buffering=0)
        except OSError as error:
            raise Problem(f"cannot write {path}: {error.strerror}") from error
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.file.close()
            raise Problem(f"another process is training in {path.parent}") from error
        if (there := os.fstat(self.file.fileno()).st_size) < size:
            self.file.close()
            raise Problem(f"{path} has {there} bytes, fewer than the {size} that the checkpoint goes on from")
        with open(path, "rb") as kept:
            self.sha = hashlib.sha256(kept.read(size))
        if digest is not None and digest != self.digest():
            self.file.close()
            raise Problem(f"{path} is damaged: its first {size} bytes are not those that the checkpoint knows of")
        self._ask(lambda: self.file.truncate(size))

    def add(self, facts: dict[str, Any]) -> None:
        """Append a line."""
        line = json.dumps(facts).encode() + b"\n"
        self._ask(lambda: self._write(line))
        self.sha.update(line)

    def _write(self, line: bytes) -> None:
        """Write a line to its end; what a short write left over is tried again, so that the system says why."""
        while line:
            line = line[self.file.write(line) or 0 :]

    def digest(self) -> str:
        """SHA-256 of all lines."""
        return self.sha.hexdigest()

    def sync(self) -> int:
        """Have the lines on disk; their size in bytes."""
        self._ask(lambda: os.fsync(self.file.fileno()))
        return os.fstat(self.file.fileno()).st_size

    def close(self) -> None:
        """Let the file go."""
        self.file.close()

    def _ask(self, action: Any) -> None:
        try:
            action()
        except OSError as error:
            raise Problem(f"cannot write {self.path}: {error.strerror}; the last checkpoint is intact") from error
