"""Queues of runs that go on where they stopped: one run at a time, each by the program itself."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from revtune.program.errors import Problem
from revtune.program.files import locked
from revtune.program.layers import Model

Figures = dict[str, Any]
NAMES = {"gru": "nn.GRU", "lstm": "nn.LSTM", "revgru": "RevGRU", "revlstm": "RevLSTM"}
COUNTERPART: dict[Model, Model] = {"revgru": "gru", "revlstm": "lstm"}
RESULTS = Path(__file__).parent / "results"
STOPPED = 130  # the program's exit code after a checkpoint when it was asked to stop


class Job(Protocol):
    """A run of a study."""

    @property
    def name(self) -> str:
        """Its name in files and on the command line."""

    def command(self) -> list[str]:
        """What trains it, but for the folder."""


@dataclass(frozen=True, kw_only=True)
class RecurrentJob:
    """What runs of recurrent nets share.

    Args:
        model: torch's layers or ours.
        bits: the most that a unit may forget in one step; None for no limit. Torch's layers leave the default.
    """

    model: Model
    bits: float | None = 3.0

    @property
    def reversible(self) -> bool:
        """Whether it trains one of our cells."""
        return self.model in COUNTERPART

    @property
    def limit(self) -> str:
        """The limit in words; nothing for torch's layers."""
        if not self.reversible:
            return ""
        return "none" if self.bits is None else f"{self.bits:g} bits"

    @property
    def limit_name(self) -> str:
        """The limit in names of files."""
        return self.limit.replace(" ", "").replace("none", "unlimited")


J = TypeVar("J", bound=Job)


def measured(path: Path) -> list[Figures]:
    """The measurements of a run so far, in order; none when it was not begun."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def call(words: list[str]) -> int:
    """The exit code of a command; Ctrl-C reaches it too, and is left to it."""
    with subprocess.Popen(words) as child:
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                return child.wait()


def backend() -> str:
    """What computes the reversible layers here, as `revtune doctor` says; paths of the machine are left out."""
    told = subprocess.run([sys.executable, "-m", "revtune", "doctor"], capture_output=True, text=True, check=True)
    said = next(line.partition(": ")[2] for line in told.stdout.splitlines() if line.startswith("backend: "))
    return re.sub(r"(, )?/[^,)]+", "", said)


def named(jobs: Sequence[J], name: str) -> list[J]:
    """The run of a name, alone.

    Raises:
        Problem: no run has it.
    """
    found = [job for job in jobs if job.name == name]
    if not found:
        raise Problem(f"--only must name a run, got {name!r}; --list shows them", code=2)
    return found


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder of runs, which one queue may do at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        yield


def work(label: str, wanted: Sequence[J], done: Callable[[J], object], train: Callable[[J], None]) -> None:
    """Train one after another what is not done yet; one that fails, or cannot be told, leaves the next its turn.

    Raises:
        Problem: when a run was stopped, at once, or when any failed, at the end.
    """
    failed = []
    for job in wanted:
        try:
            if not done(job):
                print(f"== {job.name}: {' '.join(job.command())}", flush=True)
                train(job)
        except Problem as problem:
            if problem.code == STOPPED or problem.code < 0:
                raise
            failed.append(str(problem))
            print(f"{label}: {problem}", file=sys.stderr)
    if failed:
        raise Problem(f"{len(failed)} of {len(wanted)} runs failed: {'; '.join(failed)}")
