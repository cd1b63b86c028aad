"""Seals in a search's journal: lines that know all of the journal before them, and the files beside it.

A search adds one after each trial. What stands behind the last of them is of a trial that was stopped, or that ended
just before the process did. Journals of earlier versions have none and are read as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from revtune.program.errors import Problem
from revtune.program.files import read_bytes
from revtune.program.runs.seals import Seals, digest
from revtune.program.studies.json_files import parsed
from revtune.program.tasks.loop import DATA

KEY = "seals"
"""What Optuna's study calls them among its attributes."""

JOURNAL, METRICS = "journal.log", "metrics.jsonl"

SEAL = {"digests": dict, METRICS: int}


@dataclass(frozen=True)
class JournalSeal:
    """The last seal in a journal.

    Attributes:
        digests: by name, of the files beside the journal and of the data.
        before: bytes of the journal before it.
        metrics: bytes of the measurements that it knows.
    """

    digests: dict[str, str]
    before: int
    metrics: int


def attribute(folder: Path, seals: Seals, data: str, metrics: int) -> dict[str, object]:
    """A seal of a search's folder as it is now, for Optuna to write down.

    Args:
        folder: of the search.
        seals: of what the search was begun with.
        data: the digest of its data.
        metrics: how many bytes of measurements belong to trials that have ended.
    """
    return {"digests": {**seals.digests, **_digests(folder, None, metrics), DATA: data}, METRICS: metrics}


def check(path: Path, seals: Seals, data: str) -> None:
    """Compare a journal and what lies beside it with the journal's last seal.

    Args:
        path: of the journal.
        seals: of what the search was begun with, as it is now.
        data: the digest of its data.

    Raises:
        Problem: a file was edited, and that is not accepted; or the data are others.
    """
    if (seal := last_seal(path)) is None:
        return
    if seal.digests.get(DATA, data) != data:
        raise Problem(f"the data are not those that {path.parent} was searched on: their digest differs")
    now = {**seals.digests, **_digests(path.parent, seal.before, seal.metrics)}
    if not seals.accept_edits and seal.digests.get(JOURNAL) != now[JOURNAL]:
        raise Problem(f"{path} was edited before its last seal; put it back, or --accept-edits takes it as it is")
    Seals(now, seals.accept_edits).check(seal.digests, path)


def last_seal(path: Path) -> JournalSeal | None:
    """The last seal in a journal, if there is a journal and one in it.

    Raises:
        Problem: it is damaged.
    """
    lines = read_bytes(path).split(b"\n")[:-1] if path.exists() else []
    for index in reversed(range(len(lines))):
        record = parsed(lines[index], {}, path, index + 1) if KEY.encode() in lines[index] else {}
        attributes = record.get("user_attr")
        if isinstance(attributes, dict) and KEY in attributes:
            whole = parsed(lines[index], {"user_attr": {KEY: SEAL}}, path, index + 1)["user_attr"][KEY]
            before = sum(len(line) + 1 for line in lines[:index])
            return JournalSeal(whole["digests"], before, whole[METRICS])
    return None


def _digests(folder: Path, journal: int | None, metrics: int) -> dict[str, str]:
    """Of so many bytes of both files, all of the journal for None; of no bytes where a file is not there."""
    sizes = {JOURNAL: journal, METRICS: metrics}
    paths = {name: folder / name for name in sizes}
    return {name: digest(read_bytes(path)[: sizes[name]] if path.exists() else b"") for name, path in paths.items()}
