"""The folder of a run: made for a new one, found again, or refused."""

from __future__ import annotations

import contextlib
import itertools
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

from revtune.program.errors import Problem
from revtune.program.files import locked, write
from revtune.program.machine import environment

RUNS = Path("runs")
"""Where runs go that are given no folder."""

LEARNT = ("checkpoint.safetensors", "weights.safetensors", "result.json", "metrics.jsonl")
"""What a run has once it has learnt something."""

ENVIRONMENT = "environment.json"
"""Versions and processors that a run began with: told by reports, and of no meaning to the run."""

SCHEDULE, HISTORY, REPLAYED = "schedule.json", "history.jsonl", "replayed.json"
"""What a run tuned, at validations and step by step, and what a plain run takes from one that did."""

OWN = (*LEARNT, "config.json", "vocabulary.json", SCHEDULE, REPLAYED, ENVIRONMENT, "lock")
"""The files of a run, which nothing else may be written to."""


def command_line(*words: str | Path) -> str:
    """A command of this program as a shell takes it, for hints: paths may have spaces, quotes and more."""
    return shlex.join(["revtune", *map(str, words)])


def intact(folder: Path) -> str:
    """What to say after a failure of the checkpoint in a folder; nothing where there is none yet."""
    return "; the last checkpoint is intact" if (folder / "checkpoint.safetensors").exists() else ""


def config_of(folder: Path) -> Path:
    """The file with the settings of the run in a folder.

    Raises:
        Problem: the folder holds no run.
    """
    path = folder / "config.json"
    if not path.exists():
        raise Problem(f"{folder} holds no run: config.json is not there")
    return path


@contextlib.contextmanager
def claimed(recipe: str, out: Path | None) -> Iterator[Path]:
    """A folder for a new run, `out` or the next free `runs/<recipe>-<n>`, locked while its settings are written.

    Raises:
        Problem: it holds a run already, cannot be made, or another process begins one there.
    """
    folder = made_folder(recipe, out)
    with locked(folder):
        refuse_taken(folder)
        yield folder
        write(folder / ENVIRONMENT, json.dumps(environment(), indent=1).encode() + b"\n")


def refuse_taken(out: Path | None) -> None:
    """Raise `Problem` when a folder for a new run holds a run already, or what is left of one."""
    if out is None:
        return
    if (out / "config.json").exists():
        raise Problem(f"{out} already holds a run; {command_line('train', '--resume', out)} goes on with it")
    if left := next((name for name in LEARNT if (out / name).exists()), None):
        raise Problem(f"{out} holds {left} of a run whose config.json is not there; put it back, or give another --out")


def already_finished(folder: Path, steps: int) -> Problem:
    """The error for a run that is to go on and has taken all its steps."""
    return Problem(f"{folder} is finished: all {steps} steps are done")


def next_folder(recipe: str) -> Path:
    """Make the next free `runs/<recipe>-<n>`; processes that look for one at once get different ones."""
    for number in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            folder = RUNS / f"{recipe}-{number}"
            folder.mkdir(parents=True)
            return folder
    raise AssertionError  # count never ends


def made_folder(recipe: str, out: Path | None) -> Path:
    """The folder `out`, or the next free `runs/<recipe>-<n>`.

    Raises:
        Problem: it cannot be made.
    """
    try:
        if out is None:
            return next_folder(recipe)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(f"cannot make the folder {out or RUNS}: {error.strerror}") from error
    return out
