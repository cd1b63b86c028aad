"""The hyperparameters that a plain run takes from a run that tuned them: all of their schedule, or their last values.

schedule.json, history.jsonl    what a run tuned, step by step, as language models and tasks write it
replayed.json                   what a plain run takes of that, and whose it was, in the folder of its own, so that it
                                needs no other, and whoever replays this run neither
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revtune.program.errors import Problem
from revtune.program.files import absolute, read_bytes, read_text
from revtune.program.runs.folder import HISTORY, REPLAYED, SCHEDULE
from revtune.program.tuning import write_schedule
from revtune.program.typed import reason
from revtune.tuning.conversion.replay import check_schedule
from revtune.tuning.hypers.kinds import Hyper, Positive, Rate
from revtune.tuning.tuner.schedule import Schedule, columns

OF = "of"
"""What a schedule that is followed calls whose it is: the folder as "run", and as "step" from when on the last values
held, where these alone are followed, else null."""


@dataclass(frozen=True, kw_only=True)
class Followed:
    """Whose hyperparameters a plain run takes."""

    replay: Path | None = None
    """Set all hyperparameters at each step to what the tuned run in this folder had there, or one that replayed it;
    nothing is tuned."""
    values_of: Path | None = None
    """Set all hyperparameters to those that the tuned run in this folder had last, as far as it has come;
    nothing is tuned."""

    def schedule(self, starts: Mapping[str, float] | None = None) -> Schedule | None:
        """What is followed; None where nothing is.

        Args:
            starts: of a task's hyperparameters, which its history does not tell.

        Raises:
            Problem: two folders are given, or one holds no schedule.
        """
        if self.replay is not None and self.values_of is not None:
            raise Problem("--replay and --values-of cannot both be followed: give one of them", code=2)
        if self.replay is not None:
            return {OF: {"run": str(absolute(self.replay)), "step": None}, **replayable(self.replay, starts)}
        if self.values_of is None:
            return None
        schedule = schedule_of(self.values_of, starts)
        return {OF: {"run": str(absolute(self.values_of)), "step": schedule["steps"][-1]}, **at_the_end(schedule)}

    def check_untuned(self, tunes: str | None) -> None:
        """Raise `Problem` for a run that is tuned all the same, by the option that says so."""
        if self.option and tunes:
            raise Problem(f"{self.option} is for a run that tunes nothing itself, got {tunes}", code=2)

    @property
    def option(self) -> str | None:
        """The option that was given, if one was."""
        return "--replay" if self.replay is not None else "--values-of" if self.values_of is not None else None


def replayable(folder: Path, starts: Mapping[str, float] | None = None) -> Schedule:
    """What the run in a folder tuned, by step, or what it followed itself.

    Raises:
        Problem: as `schedule_of`.
    """
    path = folder / REPLAYED
    return read(path) if path.exists() else schedule_of(folder, starts)


def whose(schedule: Schedule) -> str:
    """Whose hyperparameters a run follows, in words; earlier versions did not write it down."""
    match schedule.get(OF):
        case {"run": str(run), "step": None}:
            return f"the schedule of {run}"
        case {"run": str(run), "step": int(step)}:
            return f"the last values of {run}, which it had from step {step} on"
    return "the schedule of another run"


def schedule_of(folder: Path, starts: Mapping[str, float] | None = None) -> Schedule:
    """What the run in a folder tuned, by step.

    Raises:
        Problem: it tuned nothing, has not begun to, or its file is damaged.
    """
    path, history = folder / SCHEDULE, folder / HISTORY
    if starts is None or path.exists():
        return read(path)
    if not history.exists():
        raise Problem(f"{folder} has no schedule to follow: neither {SCHEDULE} nor {HISTORY} is there")
    try:
        records = [json.loads(line) for line in read_text(history).splitlines()]
        schedule = {**columns(dict(starts), records), "rates": {name: [] for name in starts}}
        check_schedule(schedule)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Problem(f"{history} is no history of this run's hyperparameters: {reason(error)}") from error
    return schedule


def read(path: Path) -> Schedule:
    """The schedule in a file.

    Raises:
        Problem: it is not there, or holds none.
    """
    if not path.exists():
        raise Problem(f"{path.parent} has no schedule to follow: {path.name} is not there")
    try:
        schedule: Schedule = json.loads(read_bytes(path))
        check_schedule(schedule)
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path} holds no schedule: {reason(error)}") from error
    return schedule


def keep(schedule: Schedule, folder: Path) -> None:
    """Write what a run follows into its folder."""
    write_schedule(folder / REPLAYED, schedule)


def at_the_end(schedule: Schedule) -> Schedule:
    """The last values of a schedule, from the first step on."""
    return {**schedule, "steps": [0], "values": {name: column[-1:] for name, column in schedule["values"].items()}}


def check_fits(schedule: Schedule, hypers: Mapping[str, Hyper]) -> None:
    """Raise `Problem` unless a schedule is of just these hyperparameters, at values that they can have."""
    if (theirs := set(schedule["values"])) != (ours := set(hypers)):
        told = (", ".join(sorted(some)) or "none" for some in (theirs, ours))
        raise not_followed("it has the hyperparameters {}, and this run {}".format(*told))
    for name, hyper in hypers.items():
        low, high = bounds(hyper)
        for value in schedule["values"][name]:
            if not low <= value <= high:
                raise not_followed(f"{name} must be from {low:g} to {high:g}, got {value}")


def bounds(hyper: Any) -> tuple[float, float]:
    """The least and the most that a hyperparameter can be."""
    if isinstance(hyper, Rate):
        return 0.0, 1.0
    return (0.0, math.inf) if isinstance(hyper, Positive) else (hyper.low, hyper.high)


def not_followed(why: object) -> Problem:
    """The error for a schedule that a run cannot take."""
    return Problem(f"the schedule cannot be replayed: {why}", code=2)
