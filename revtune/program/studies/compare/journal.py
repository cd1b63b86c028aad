"""Optuna's journal of a search, opened: what a process left half done when it died is cut off, and damage is refused.

Whoever opens it holds the folder, so that neither half a line nor a lock can be that of a process at work.
"""

from __future__ import annotations

import os
from pathlib import Path

import optuna
from optuna.pruners import BasePruner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from revtune.program.errors import Problem
from revtune.program.files import read_bytes
from revtune.program.studies.json_files import parsed

RECORD = {"op_code": int}
"""What every line is."""


def opened(path: Path, name: str, pruner: BasePruner) -> optuna.Study:
    """The study of a name that a journal holds, or a new one.

    Raises:
        Problem: the journal is damaged, or another search's.
    """
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # Optuna would wait for half a minute
    mend(path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(storage=storage, study_name=name, load_if_exists=True, pruner=pruner)
    except (AssertionError, LookupError, TypeError, ValueError) as error:
        raise Problem(f"{path} is damaged: it is no journal of Optuna's ({type(error).__name__}: {error})") from error


def mend(path: Path) -> None:
    """Cut a last line off that was not written to its end; its trial had not ended, and is lost in any case.

    Raises:
        Problem: another line is damaged.
    """
    if not path.exists():
        return
    *lines, rest = read_bytes(path).split(b"\n")
    for number, line in enumerate(lines, 1):
        parsed(line, RECORD, path, number)
    if rest:
        os.truncate(path, path.stat().st_size - len(rest))
