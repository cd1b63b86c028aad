"""The folder of a run: claimed, found, refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
import contextlib
import itertools
from revtune.program.errors import Problem
from revtune.program.files import held
from revtune.program.files import regular


RUNS = Path("runs")


LEARNT = ("checkpoint.safetensors", "weights.safetensors", "result.json", "metrics.jsonl")
"""What a run has once it has learnt something."""


OWN = (*LEARNT, "config.json", "vocabulary.json", "lock")
"""What is a run's, and no place for anything else."""


def config_of(folder: Path) -> Path:
    """The file with the settings of the run in a folder.

    Raises:
        Problem: the folder holds no run.
    """
    path = folder / "config.json"
    if not path.exists():
        raise Problem(f"{folder} holds no run: config.json is not there")
    return path


@contextlib.contextmanager
def claimed(recipe: str, out: Path | None) -> Iterator[Path]:
    """A folder for a new run: `out`, or the next free `runs/<recipe>-<n>`; nobody else writes settings there meanwhile.

    Raises:
        Problem: it holds a run already, cannot be made, or another process begins one there.
    """
    try:
        folder = next_folder(recipe) if out is None else _made(out)
    except OSError as error:
        raise Problem(f"cannot make the folder {out or RUNS}: {error.strerror}") from error
    with held(folder):
        refuse_taken(folder)
        yield folder


def refuse_taken(out: Path | None) -> None:
    """Raise `Problem` when a folder for a new run holds a run already, or what is left of one."""
    if out is None:
        return
    if (out / "config.json").exists():
        raise Problem(f"{out} already holds a run; revtune train --resume {out} goes on with it")
    if left := next((name for name in LEARNT if (out / name).exists()), None):
        raise Problem(f"{out} holds {left} of a run whose config.json is not there; put it back, or give another --out")


def next_folder(recipe: str) -> Path:
    """The next free `runs/<recipe>-<n>`, made."""
    for number in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            folder = RUNS / f"{recipe}-{number}"
            folder.mkdir(parents=True)
            return folder
    raise AssertionError


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _text(path: Path) -> str:
    try:
        return regular(path).read_text(encoding="utf-8")
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Problem(f"{path} is no text: {error}") from error
