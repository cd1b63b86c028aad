"""Worker processes: each is given a job as JSON on its command line and prints what it measured as JSON."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from revtune.program.errors import Problem
from revtune.program.typed import read_typed

Record = dict[str, Any]
"""What was measured of one case, ready for JSON."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is to measure; the benchmarks add fields to it.

    Attributes:
        threads: of torch, for all contestants.
    """

    threads: int

    def text(self) -> str:
        """The job for a worker's command line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def of(cls, text: str) -> Self:
        """The job that a worker was given."""
        return read_typed(cls, json.loads(text))


def outcome(module: str, job: str) -> Record:
    """What a worker that measures memory prints, in a process like a user's; {"error": reason} of one that fails."""
    command = [sys.executable, "-m", module, job]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"error": f"exit {done.returncode}: {last_words(done.stderr)}"}
    record: Record = json.loads(done.stdout)
    return record


def middle(found: Sequence[Record]) -> Record:
    """The record of the middle "bytes", with the "range" of all; the first one with an "error", if any has."""
    if failed := next((record for record in found if "error" in record), None):
        return failed
    ranked = sorted(found, key=lambda record: int(record["bytes"]))
    return {**ranked[len(ranked) // 2], "range": [ranked[0]["bytes"], ranked[-1]["bytes"]]}


def records(module: str, job: str, names: Sequence[str]) -> Iterator[Record]:
    """What a worker prints, a line for each case, while it goes on with the next.

    Args:
        module: of the worker.
        job: for its command line.
        names: of the cases, for the error of a worker that fails.

    Raises:
        Problem: it fails, with the case that it failed at and its last words.
    """
    command = [sys.executable, "-m", module, job]
    with (
        tempfile.TemporaryFile("w+") as stderr,  # a pipe that nobody reads meanwhile would fill up and stop the worker
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as worker,
    ):
        assert worker.stdout is not None
        try:
            for name in names:
                line = worker.stdout.readline()
                if not line.endswith("\n"):
                    code = worker.wait()
                    stderr.seek(0)
                    raise Problem(f"{name} could not be measured: exit {code}: {last_words(stderr.read())}")
                yield json.loads(line)
            stderr.seek(0)
            sys.stderr.write(stderr.read())
        finally:
            worker.kill()


def last_words(stderr: str) -> str:
    """Why a worker failed: the first line of the error that ended it, or else the last line that it printed."""
    _, began, traceback = stderr.rpartition("Traceback (most recent call last):\n")
    errors = (line for line in traceback.splitlines() if began and line[:1].strip())
    return next(errors, (stderr.strip().splitlines() or ["no word"])[-1])
