"""Where measurements go besides metrics.jsonl: to a tracker of Accelerate's, where a run is told of one.

    tensorboard     RUN/tensorboard
    trackio         where its environment says, TRACKIO_DIR or its own cache
    wandb, mlflow   where these are set up to go

Nothing of this is imported unless a tracker is named. A tracker that fails later is left, with a line on stderr, since
what it is told is in metrics.jsonl as well.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, Literal, get_args

from revtune.program.errors import Problem
from revtune.program.files import read_text

Tracked = Literal["none", "tensorboard", "wandb", "mlflow", "trackio"]
"""Names of trackers, and none."""

PROJECT = "revtune"

NEEDS = {name: ("accelerate", name) for name in get_args(Tracked)[1:]}
"""The packages of each."""


def check(name: Tracked) -> None:
    """Raise `Problem` when a tracker needs a package that is missing, with the command that installs it."""
    missing = [package for package in NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]
    if missing:
        what = "'revtune[track]'" if name == "tensorboard" else " ".join(missing)
        raise Problem(f"--track {name} needs {' and '.join(missing)}; pip install {what} installs it", code=2)


def flat(values: Any, prefix: str = "", between: str = "/") -> dict[str, Any]:
    """Values by name, those of a dictionary with its name before theirs."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        name: value
        for key, part in values.items()
        for name, value in flat(part, f"{prefix}{between}{key}" if prefix else str(key), between).items()
    }


class Tracking:
    """Hands what a run measures to a tracker, as numbers by name.

    Args:
        name: of the tracker.
        folder: of the run, whose configuration is handed over first.
        step: that the run goes on after; what TensorBoard knows of later ones is withdrawn.

    Raises:
        Problem: a package is missing, or the tracker cannot begin.
    """

    def __init__(self, name: Tracked, folder: Path, step: int = 0) -> None:
        check(name)
        self.name = name
        try:
            self._tracker = opened(name, folder, step)
            self._tracker.start()
            settings = flat(json.loads(read_text(folder / "config.json")), between=".")
            self._tracker.store_init_configuration({key: str(value) for key, value in settings.items()})
        except Exception as error:  # whatever a tracker and its service may raise
            raise Problem(f"--track {name} cannot begin: {said(error)}") from error

    def log(self, facts: dict[str, Any]) -> None:
        """Hand over the numbers of a line of measurements, those of a dictionary with its name before theirs."""
        numbers = {name: value for name, value in flat(facts).items() if type(value) in (int, float) and name != "step"}
        self._hand(numbers, facts["step"])

    def text(self, name: str, text: str, step: int) -> None:
        """Hand over a text; MLflow, which has no place for one among measurements, gets none."""
        if self.name != "mlflow":
            self._hand({name: text}, step)

    def close(self) -> None:
        """End it, so that all that it was told is written."""
        self._ask("finish")

    def _hand(self, values: dict[str, Any], step: int) -> None:
        self._ask("log", values, step=step)

    def _ask(self, method: str, *arguments: Any, **more: Any) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, method)(*arguments, **more)
        except Exception as error:  # a run is worth more than its tracker
            self._tracker = None
            print(f"revtune: {self.name} tracks no more: {said(error)}; metrics.jsonl has all of it", file=sys.stderr)


def opened(name: Tracked, folder: Path, step: int) -> Any:
    """A tracker of Accelerate's that has not begun."""
    from accelerate import PartialState, tracking  # an extra, and only where a tracker is named

    PartialState()  # without it trackers that may run in any process, wandb's and trackio's, cannot even log
    run = folder.resolve().name
    if name == "tensorboard":
        later = {"purge_step": step + 1} if step else {}
        return tracking.TensorBoardTracker("tensorboard", folder, **later)
    if name == "mlflow":
        return tracking.MLflowTracker(PROJECT, run_name=run)
    if name == "wandb":
        return tracking.WandBTracker(PROJECT, name=run, dir=str(folder))
    return tracking.TrackioTracker(PROJECT, name=run)


def said(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0]
