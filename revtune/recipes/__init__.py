"""Recipes: a module each, whose `recipe` function returns the typed configuration of a study.

One that is more than a training run has `Options` of its own for the command line, and `run` and `resume`. One whose
hyperparameters are tuned has `task` and `study`, as `revtune.task` tells. One that translates says `translates`, and
one that tunes in an experiment of its own says `tunes`.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from types import ModuleType

from revtune.problem import Problem

DEFAULT = "stdlib"


def names() -> list[str]:
    """The names of all recipes, the default one first."""
    return sorted((found.name for found in pkgutil.iter_modules(__path__)), key=lambda name: (name != DEFAULT, name))


def find(name: str) -> ModuleType:
    """The module of a recipe.

    Raises:
        Problem: for an unknown name, with the known ones.
    """
    if name not in names():
        raise Problem(f"there is no recipe {name!r}; there are {', '.join(names())}", code=2)
    return importlib.import_module(f"{__name__}.{name}")


def is_study(name: str) -> bool:
    """Whether a recipe is more than a training run."""
    return hasattr(find(name), "Options")


def is_tuned(name: str) -> bool:
    """Whether a recipe's hyperparameters are tuned."""
    return hasattr(find(name), "task")


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
        return importlib.import_module("revtune.tuned_train")
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


def overview(chosen: list[str] | None = None) -> str:
    """A paragraph on each recipe, or each of some: the first line of its docstring."""
    return "\n\n".join(f"{name}: {(find(name).__doc__ or '').splitlines()[0]}" for name in chosen or names())
