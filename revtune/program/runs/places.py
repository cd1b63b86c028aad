"""Where a run's data are, also when the run, they or both were moved.

config.json has the path as it was given, made absolute, and as seen from the run's folder, so that what is moved
together is found. Whether what is found is the run's, its digest decides.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from revtune.program.files import absolute, read_bytes
from revtune.program.runs.seals import NEAR, SETTINGS


def near(folder: Path, **paths: Path | None) -> dict[str, Any]:
    """What config.json says of paths as seen from a run's folder, by the names of their settings."""
    here = os.path.realpath(folder)
    seen = {
        name: os.path.relpath(os.path.join(os.path.realpath(path.parent), path.name), here)
        for name, path in paths.items()
        if path is not None
    }
    return {NEAR: seen} if seen else {}


def place(name: str, given: Path | None, folder: Path, now: Path | None = None) -> Path | None:
    """Where a run's data are now.

    Args:
        name: of the setting, file or data.
        given: what the run's settings say.
        folder: of the run.
        now: where they are, for whoever says so.

    Returns:
        That path, or `given` where something is there or it is found nowhere else; else what is at the same place as
        seen from the folder, or of the same name in it or beside it.
    """
    if now is not None or given is None or given.exists():
        return absolute(now) or given
    for moved in (*_seen(name, folder), folder / given.name, folder.parent / given.name):
        if moved.exists():
            print(f"revtune: {given} is not there; {moved} is read in its place", file=sys.stderr)
            return moved
    return given


def _seen(name: str, folder: Path) -> list[Path]:
    """The place that config.json knows as seen from its folder, if it does; earlier versions wrote none down."""
    with contextlib.suppress(LookupError, TypeError, ValueError, RecursionError):
        seen = json.loads(read_bytes(folder / SETTINGS))[NEAR][name]
        return [Path(os.path.normpath(os.path.join(os.path.realpath(folder), seen)))]
    return []
