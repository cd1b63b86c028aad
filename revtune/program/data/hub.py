"""Files read, and data sets asked for on the hub."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rich.console import Console

from revtune.program.errors import Problem
from revtune.program.files import regular


def ask_hub(name: str, path: str, subset: str | None, revision: str | None, looked: str) -> Any:
    """All splits of a data set, asked for by its path on the hub.

    Raises:
        Problem: whatever goes wrong there, with what was looked for first.
    """
    try:
        import datasets

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        with Console(stderr=True).status(f"asking the hub for {name}"):
            return datasets.load_dataset(path, subset, revision=revision)
    except ModuleNotFoundError as error:
        raise Problem(f"{name} was not found: {looked}, and the hub needs pip install 'revtune[program]'") from error
    except Exception as error:
        raise _no_answer(name, looked, error) from error


def _no_answer(name: str, looked: str, error: Exception) -> Problem:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return Problem(f"{name} was not found: {looked}, and the hub did not give it ({reason})")


def read(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        Problem: when it cannot be read or is no regular file.
    """
    try:
        return regular(path).read_bytes()
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}") from error


def decode(content: bytes, name: str, *, advice: str = "; --unit byte reads any file") -> str:
    """Bytes as UTF-8 text.

    Raises:
        Problem: when they are none, with the place of the first wrong byte and the advice.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"byte {error.object[error.start]:#04x} at {error.start}"
        raise Problem(f"{name} is no UTF-8 text: {where}{advice}") from error
