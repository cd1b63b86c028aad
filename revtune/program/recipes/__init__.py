"""Recipes: a module each, which describes runs and never starts one.

Each says of which `kind` it is, which decides who runs it. Its `recipe` function returns the typed settings of a run or
a study. A recipe of the kind "tuned" has two functions instead, `study` and `task`, as `tasks.task` tells; one of the
kind "text" has a `task` beside its `recipe`, by which it is compared. One of the kind "signal" has a `study` and a
`task`, a `PlainTask`, likewise.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Literal

from revtune.program.errors import Problem

Kind = Literal["text", "tuned", "translation", "repeat", "output_dropout", "signal"]
"""Language models; tasks whose hyperparameters are tuned; translators; two studies of many runs each; nets that read
long signals."""

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


def overview(chosen: list[str] | None = None) -> str:
    """A paragraph on each recipe, or each of some: the first line of its docstring."""
    return "\n\n".join(f"{name}: {(find(name).__doc__ or '').splitlines()[0]}" for name in chosen or names())
