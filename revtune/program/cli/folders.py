"""Which recipe a folder is of, and which commands take it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from revtune.program import recipes
from revtune.program.errors import Problem
from revtune.program.files import read_bytes
from revtune.program.language.run import Run
from revtune.program.runs.folder import command_line

COMMANDS: dict[recipes.Kind, list[str]] = {
    "text": ["generate", "evaluate", "report", "train --resume"],
    "tuned": ["evaluate", "report", "train --resume"],
    "translation": ["translate", "evaluate", "report", "train --resume"],
    "repeat": ["report", "train --resume"],
    "output_dropout": ["report", "train --resume"],
    "signal": ["evaluate", "report", "train --resume"],
}
"""The commands that take a folder, which follows them, by the kind of its recipe."""


def kind_of(folder: Path, command: str) -> recipes.Kind:
    """The kind of the recipe that a folder is of; "text" where it is no recipe's, since its runner says what is wrong.

    Raises:
        Problem: the command does not take it; the message names its recipe and the commands that do. Or there is no
            such recipe.
    """
    settings, path = settings_of(folder), folder / "config.json"
    name = settings.get("recipe")
    if not isinstance(name, str):
        return "text"
    if name not in recipes.names():
        raise Problem(f"{path} is of recipe {name!r}, which is none of this revtune: {', '.join(recipes.names())}")
    kind: recipes.Kind = recipes.find(name).kind
    takers = ["report", f"compare {name} --out"] if is_contest(settings) else COMMANDS[kind]
    if command not in takers:
        others = ", ".join(command_line(*taker.split(), folder) for taker in takers)
        raise Problem(f"{folder} is of recipe {name}, and revtune {command} does not take it; these do: {others}")
    return kind


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of a run, study or contest in a folder; none where it holds none that can be read."""
    path = folder / "config.json"
    try:
        settings = json.loads(read_bytes(path)) if path.exists() else {}
    except (ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def is_contest(settings: dict[str, Any]) -> bool:
    """Whether settings are those of a contest, which are under a recipe's name too."""
    return "contestants" in settings


def check_moved(kind: recipes.Kind, folder: Path, file: Path | None, data: Path | None) -> None:
    """Raise `Problem` for the place of what runs of this kind do not read."""
    if file is not None and kind != "text":
        raise Problem(f"--file is the text of a language model; {folder} is of another kind", code=2)
    if data is not None and kind == "repeat":
        raise Problem(f"--data is a folder with data sets; {folder} is of recipe repeat, which reads none", code=2)


def opened(
    folder: Path, *, file: Path | None = None, data: Path | None = None, accept_edits: bool = False
) -> Run:  # fmt: skip
    """A language model's run to use as it is, on as many threads as it was trained on."""
    run = Run(folder, file, data, accept_edits)
    torch.set_num_threads(run.config().learning.threads)
    return run
