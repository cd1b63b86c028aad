"""Where Optuna keeps the trials of a search: in a journal of the search's folder, or in a storage that is given by URL.

A journal is mended when it is opened: what a process left half done when it died is cut off, and damage is refused.
Whoever opens it holds the folder, so that neither half a line nor a lock can be that of a process at work. Optuna's
dashboard reads either.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from revtune.program.errors import Problem
from revtune.program.files import read_bytes, write
from revtune.program.studies.compare.journal_seals import JOURNAL
from revtune.program.studies.json_files import parsed, read_object

RECORD = {"op_code": int}
"""What every line is."""

STUDY = "study.json"
"""In the folder of a search whose trials are kept by URL: the study's name there, but not the URL, which may hold a
password."""


@dataclass(frozen=True)
class Kept:
    """Where the trials of a search are kept.

    Attributes:
        folder: of the search.
        name: of the study.
        url: of the storage; None for the folder's journal.
    """

    folder: Path
    name: str
    url: str | None = None

    @property
    def journal(self) -> Path:
        """The journal, which is there if there is no other storage."""
        return self.folder / JOURNAL

    def storage(self) -> BaseStorage:
        """Optuna's storage.

        Raises:
            Problem: there is none at the URL, or it cannot be reached.
        """
        if self.url is None:
            return JournalStorage(JournalFileBackend(str(self.journal)))
        try:
            storage = optuna.storages.get_storage(self.url)
            storage.get_all_studies()
        except Exception as error:  # of whatever database and its driver
            reason = (str(error).splitlines() or [""])[0].replace(self.url, "it")
            why = f"{type(error).__name__}: {reason}"
            raise Problem(f"--storage must be a URL that Optuna can keep trials at, but {why}", code=2) from error
        return storage

    def study(self, pruner: BasePruner, sampler: BaseSampler | None = None) -> optuna.Study:
        """The study, as it is there, or a new one."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return optuna.create_study(
            storage=self.storage(), study_name=self.name, load_if_exists=True, pruner=pruner, sampler=sampler
        )


def kept(folder: Path, searcher: str, url: str | None) -> Kept:
    """Where the search in a folder keeps its trials; in a storage by URL its study has a name that no other has.

    Raises:
        Problem: it was begun in the other way.
    """
    path = folder / STUDY
    if url is None:
        if path.exists():
            raise Problem(f"{folder} keeps its trials in a storage of Optuna's; give its URL by --storage")
        return Kept(folder, searcher)
    if (folder / JOURNAL).exists():
        raise Problem(f"{folder} keeps its trials in {JOURNAL}; leave --storage out, or give another --out")
    if not path.exists():
        name = f"revtune {folder.parent.parent.name} {folder.parent.name} {searcher} {uuid.uuid4().hex[:8]}"
        write(path, json.dumps({"study": name}).encode() + b"\n")
    return Kept(folder, str(read_object(path, {"study": str})["study"]), url)


def opened(kept: Kept, pruner: BasePruner) -> optuna.Study:
    """The study of a search, or a new one, for whoever holds the folder.

    Raises:
        Problem: the journal is damaged, or another search's; or the storage cannot be reached.
    """
    if kept.url is not None:
        return kept.study(pruner)
    path = kept.journal
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # Optuna would wait for half a minute
    mend(path)
    try:
        return kept.study(pruner)
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
