"""Which recipe a folder is of, and which commands take it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from revtune.program import recipes
from revtune.program.errors import Problem
from revtune.program.language.run import Run

COMMANDS: dict[recipes.Kind, list[str]] = {
    "text": ["generate", "evaluate", "train --resume"],
    "tuned": ["evaluate", "train --resume"],
    "translation": ["translate", "evaluate", "train --resume"],
    "repeat": ["train --resume"],
    "output_dropout": ["train --resume"],
}
"""The commands that take a folder, which follows them, by the kind of its recipe."""


def kind_of(folder: Path, command: str) -> recipes.Kind:
    """The kind of the recipe that a folder is of; "text" where it is no recipe's, since its runner says what is wrong.

    Raises:
        Problem: the command does not take it; the message names its recipe and the commands that do.
    """
    try:
        settings = json.loads((folder / "config.json").read_bytes())
        name = settings["recipe"]
    except (OSError, KeyError, TypeError, ValueError):
        return "text"
    if name not in recipes.names():
        return "text"
    kind: recipes.Kind = recipes.find(name).kind
    takers = [f"compare {name} --out"] if "contestants" in settings else COMMANDS[kind]
    if command not in takers:
        others = ", ".join(f"revtune {taker} {folder}" for taker in takers)
        raise Problem(f"{folder} is of recipe {name}, and revtune {command} does not take it; these do: {others}")
    return kind


def opened(folder: Path) -> Run:
    """A language model's run to use as it is, on as many threads as it was trained on."""
    run = Run(folder)
    torch.set_num_threads(run.config().learning.threads)
    return run
