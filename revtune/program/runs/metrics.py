"""The measurements of a run as JSON lines."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from revtune.program.errors import Problem
from revtune.program.files import read_text, regular
from revtune.program.runs.folder import intact
from revtune.program.runs.tracking import Tracked, Tracking
from revtune.reversible.meter import Reading


def last_step(path: Path) -> int:
    """The highest step in a file of measurements; 0 when it is not there or has none."""
    highest = 0
    for line in read_text(path).splitlines() if path.exists() else []:
        with contextlib.suppress(KeyError, TypeError, ValueError):  # the last line of a killed run may be cut off
            highest = max(highest, int(json.loads(line)["step"]))
    return highest


def bits(reading: Reading | None) -> dict[str, Any]:
    """What a line tells of the bits that a step stored a unit and step: of all layers, and of each; or nothing."""
    if reading is None or not reading.unit_steps:
        return {}
    layers = {name: round(layer.bits_per_unit_step, 4) for name, layer in reading.layers.items() if layer.unit_steps}
    return {"stored_bits": round(reading.bits_per_unit_step, 4), "layer_bits": layers}


class Unwritten:
    """The measurements of a run in a process of several that does not write: the first one does."""

    tracker = None

    def add(self, facts: dict[str, Any]) -> None:
        """Nothing."""

    def track(self, name: Tracked, step: int) -> None:
        """Nothing."""

    def digest(self) -> str:
        """That of no lines."""
        return hashlib.sha256().hexdigest()

    def sync(self) -> int:
        """Nothing is written."""
        return 0

    def close(self) -> None:
        """Nothing."""


class Metrics:
    """The measurements of a run as JSON lines, locked by one process at a time.

    Args:
        path: the file; made when it is not there.
        size: bytes of it to keep, those written before the checkpoint; what came later is cut off.
        digest: of those bytes, as `digest()` gave it; None to keep them unchecked.

    Attributes:
        tracker: what else is told of each line, if anything.

    Raises:
        Problem: another process has locked it, it cannot be written, it is shorter than that, or its digest differs.
    """

    def __init__(self, path: Path, size: int, digest: str | None = None) -> None:
        self.path = path
        self.tracker: Tracking | None = None
        try:
            self.file = open(regular(path), "ab", buffering=0)  # a line is in the file once it is written
        except OSError as error:
            raise Problem(f"cannot write {path}: {error.strerror}") from error
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.file.close()
            raise Problem(f"another process is training in {path.parent}") from error
        if (length := os.fstat(self.file.fileno()).st_size) < size:
            self.file.close()
            raise Problem(f"{path} has {length} bytes, fewer than the {size} that the checkpoint goes on from")
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
        if self.tracker is not None:
            self.tracker.log(facts)

    def track(self, name: Tracked, step: int) -> None:
        """Have a tracker told of each line from now on, after a step; "none" for none.

        Raises:
            Problem: it is not installed, or cannot begin.
        """
        if name != "none":
            self.tracker = Tracking(name, self.path.parent, step)

    def _write(self, line: bytes) -> None:
        """Write a whole line; the rest of a short write is tried again, so that the system says why it was short."""
        while line:
            line = line[self.file.write(line) or 0 :]

    def digest(self) -> str:
        """SHA-256 of all lines."""
        return self.sha.hexdigest()

    def sync(self) -> int:
        """Wait until the lines are on disk; returns their size in bytes."""
        self._ask(lambda: os.fsync(self.file.fileno()))
        return os.fstat(self.file.fileno()).st_size

    def close(self) -> None:
        """Close the file, and so unlock it, and end the tracker."""
        self.file.close()
        if self.tracker is not None:
            self.tracker.close()

    def _ask(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            raise Problem(f"cannot write {self.path}: {error.strerror}{intact(self.path.parent)}") from error
