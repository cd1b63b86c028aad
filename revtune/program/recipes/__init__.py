"""Recipes: a module each, whose `recipe` function returns the typed configuration of a study.

One that is more than a training run has `Options` of its own for the command line, and `run` and `resume`. One whose
hyperparameters are tuned has `task` and `study`, as `revtune.task` tells. One that translates says `translates`, and
one that tunes in an experiment of its own says `tunes`.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from revtune.program.errors import Problem

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


def overview(chosen: list[str] | None = None) -> str:
    """A paragraph on each recipe, or each of some: the first line of its docstring."""
    return "\n\n".join(f"{name}: {(find(name).__doc__ or '').splitlines()[0]}" for name in chosen or names())
