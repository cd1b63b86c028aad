"""What a benchmark has measured in a process of its own, told line by line or at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from revtune.program.errors import Problem

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""glibc otherwise moves these thresholds as it goes, and freed memory that stays resident would hide growth."""


def outcome(module: str, job: str) -> dict[str, Any]:
    """What a worker that measures memory prints as JSON; of one that fails, "error"."""
    command = [sys.executable, "-m", module, job]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ALLOCATOR})
    if done.returncode:
        return {"error": f"exit {done.returncode}: {last_words(done.stderr)}"}
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def records(module: str, job: str, what: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What a worker prints as JSON, a line for each of what it measures.

    Raises:
        Problem: when it fails, with what it failed at and its last words.
    """
    command = [sys.executable, "-m", module, job]
    with (
        tempfile.TemporaryFile("w+") as told,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, text=True) as worker,
    ):
        assert worker.stdout is not None
        try:
            for one in what:
                line = worker.stdout.readline()
                if not line.endswith("\n"):
                    code = worker.wait()
                    told.seek(0)
                    raise Problem(f"{one} could not be measured: exit {code}: {last_words(told.read())}")
                yield json.loads(line)
            told.seek(0)
            sys.stderr.write(told.read())
        finally:
            worker.kill()


def last_words(told: str) -> str:
    """What a worker failed of: the first line of the error that ended it, or else the last line that it said."""
    _, began, traceback = told.rpartition("Traceback (most recent call last):\n")
    errors = (line for line in traceback.splitlines() if began and line[:1].strip())
    return next(errors, (told.strip().splitlines() or ["no word"])[-1])
