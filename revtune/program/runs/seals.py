"""Seals: the digests by which weights and checkpoints know the files that they were written with.

A run reads its settings, its vocabulary and what it took from others back from files that anyone can edit. What it has
learnt is of use with these alone, so that each file of tensors carries their digests, and whoever reads it compares
them. Where the data lie is no part of that, as their own digest decides whether they are the run's. Files of earlier
versions carry none and are read as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revtune.program.errors import Problem
from revtune.program.files import read_bytes

SETTINGS, NEAR = "config.json", "near"
"""The file of settings, and what it calls the places of data as seen from its folder."""

PLACES = ("data", "file", NEAR)
"""The settings that say where the data are."""

RUN = "run"
"""What a file of tensors calls the run of a study that it is of, among its seals: its folder in the study's."""

SEALED = (SETTINGS, "vocabulary.json", "replayed.json")
"""The files of a run's folder that it begins with and never changes."""


@dataclass(frozen=True)
class Seals:
    """The digests of a run's files as they are now.

    Args:
        digests: SHA-256 by name, as seen from the run's folder.
        accept_edits: whether files are taken as they are, though they were edited.
    """

    digests: Mapping[str, str]
    accept_edits: bool = False

    @classmethod
    def of(cls, folder: Path, names: tuple[str, ...] = SEALED, *, accept_edits: bool = False) -> Seals:
        """The seals of those files that a folder has.

        Raises:
            Problem: one cannot be read.
        """
        paths = {name: folder / name for name in names}
        return cls({name: sealed(path) for name, path in paths.items() if path.exists()}, accept_edits)

    def check(self, sealed: Mapping[str, str], path: Path) -> None:
        """Compare with the digests that a file of tensors carries, none where an earlier version wrote it.

        Raises:
            Problem: a file was edited, and `accept_edits` is not given.
        """
        for name, before in sealed.items():
            # a file that is not there is told of where it is read
            if not self.accept_edits and (now := self.digests.get(name, before)) != before:
                raise of_another(path, before, now) if name == RUN else edited(path.parent / name, path)


def edited(file: Path, path: Path) -> Problem:
    """The error for a file that is not the one that another was written with."""
    which = f"{os.path.normpath(file)} is not the file that {path} was written with"
    return Problem(f"{which}: it was edited, or is another run's; put it back, or --accept-edits takes it as it is")


def of_another(path: Path, of: str, here: str) -> Problem:
    """The error for a file of one run of a study in the folder of another."""
    return Problem(f"{path} is of {of}, not of {here}; put it back, or --accept-edits takes it as it is")


def sealed(path: Path) -> str:
    """SHA-256 of a file's content; of settings but for the places of data, however they are laid out."""
    content = read_bytes(path)
    if path.name == SETTINGS:
        with contextlib.suppress(ValueError, RecursionError):  # whoever reads them says what is wrong
            content = json.dumps(_without_places(json.loads(content)), sort_keys=True).encode()
    return digest(content)


def _without_places(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    return {name: _without_places(value) for name, value in settings.items() if name not in PLACES}


def digest(content: bytes) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()
