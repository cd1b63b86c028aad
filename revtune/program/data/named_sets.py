"""Data sets by name: looked for in a folder, then asked for on the hub."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Literal

from revtune.program.errors import Problem

Split = Literal["train", "valid", "test"]

SPLITS: tuple[Split, ...] = ("train", "valid", "test")

TEXT_FILES = {"ptb": "ptb/ptb.{}.txt", "wikitext2": "wikitext-2/wiki.{}.tokens"}
"""The files of a text in the folder, with the split to be filled in; here, as `revtune doctor` has no extras."""


def data_folder(given: Path | None = None) -> Path | None:
    """The folder with data sets by name: the one given, or else the environment's REVTUNE_DATA, if it is set."""
    variable = os.environ.get("REVTUNE_DATA")
    return given or (Path(variable) if variable else None)


def not_in(folder: Path | None, what: str) -> str:
    """Why a data set did not come from the folder, for what `ask_hub` says."""
    if folder is None:
        return "no --data or REVTUNE_DATA is given"
    return f"{what} is not in {folder}" if folder.is_dir() else f"there is no folder {folder}; --data gives another"


def missing(what: str, folder: Path | None) -> Problem:
    """The error for a data set that is kept in a folder alone."""
    return Problem(f"{what} was not found: {not_in(folder, what)}")


def ask_hub(name: str, path: str, subset: str | None, revision: str | None, looked: str) -> Any:
    """All splits of a data set, asked for by its path on the hub.

    Args:
        name: what we call it.
        path, subset, revision: what the hub calls it.
        looked: why it is asked for, by `not_in`.

    Raises:
        Problem: whatever goes wrong there, and why it was asked for.
    """
    try:
        import datasets
        from rich.console import Console

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # warns of access without a token
        with Console(stderr=True).status(f"asking the hub for {name}"):
            return datasets.load_dataset(path, subset, revision=revision)
    except ModuleNotFoundError as error:
        raise Problem(f"{name} was not found: {looked}, and the hub needs pip install 'revtune[program]'") from error
    except Exception as error:  # the hub's libraries raise errors of any kind
        raise no_answer(name, looked, error) from error


def no_answer(name: str, looked: str, error: Exception) -> Problem:
    """The error for a data set that is neither in the folder nor, as it should be, on the hub."""
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return Problem(f"{name} was not found: {looked}, and the hub did not give it ({reason})")
