"""Whose a folder is, and which commands take it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from revtune.program.errors import Problem
from revtune.program.recipes import find, is_study, is_tuned, names

if TYPE_CHECKING:
    from revtune.program.language.run import Run


def opened(folder: Path) -> Run:
    """A run to use as it is, on as many threads as it was trained on."""
    import torch

    from revtune.program.language.run import Run

    run = Run(folder)
    torch.set_num_threads(run.config().learning.threads)
    return run


def refuse_other(folder: Path, command: str) -> None:
    """Raise `Problem` for a folder that a command does not take, with whose it is and what takes it."""

    there = takers(folder)
    if there and command not in there:
        whose, others = recipe_in(folder), ", ".join(f"revtune {taker} {folder}" for taker in there)
        raise Problem(f"{folder} is of recipe {whose}, and revtune {command} does not take it; these do: {others}")


def recipe_in(folder: Path) -> str | None:
    """The name of the recipe that the run in a folder is of; None if it is none."""
    try:
        name = json.loads((folder / "config.json").read_bytes())["recipe"]
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return name if name in names() else None


def tuned_in(folder: Path) -> bool:
    """Whether the run in a folder is one whose hyperparameters were tuned."""
    name = recipe_in(folder)
    return name is not None and is_tuned(name)


def translates_in(folder: Path) -> bool:
    """Whether the run in a folder translates."""
    name = recipe_in(folder)
    return name is not None and hasattr(find(name), "translates")


def study_in(folder: Path) -> ModuleType | None:
    """What resumes the study or tuned run in a folder; None for a training run's folder or any other."""
    if tuned_in(folder):
        return importlib.import_module("revtune.program.studies.tuned")
    name = recipe_in(folder)
    return find(name) if name is not None and is_study(name) else None


def takers(folder: Path) -> list[str]:
    """The commands that take a folder, which follows them; none where it is no recipe's."""
    name = recipe_in(folder)
    if name is None:
        return []
    if "contestants" in json.loads((folder / "config.json").read_bytes()):
        return [f"compare {name} --out"]
    if translates_in(folder):
        return ["translate", "evaluate", "train --resume"]
    if is_tuned(name):
        return ["evaluate", "train --resume"]
    return ["train --resume"] if is_study(name) else ["generate", "evaluate", "train --resume"]
