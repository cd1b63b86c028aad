"""Repeat the previous token, ever longer: where nothing can be forgotten, a net fails; --full for a larger study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from revtune.program.studies.repeat import study as repeat_run
from revtune.program.tasks.repeat import Study


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare reversible nets with and without forgetting, and torch's own, on repeating the previous token."""

    study: tyro.conf.OmitArgPrefixes[Study]
    out: Path | None = None
    """Folder of the study; one that holds this study is gone on with. By default the next free runs/repeat-<n>."""
    full: bool = False
    """Longer sequences, more updates and seeds: hours instead of minutes."""
    workers: int | None = None
    """Models learning at a time; by default as many as there are processors."""


def recipe(*, full: bool = False) -> Study:
    """Three minutes on two cores; in full, ten times the updates, five seeds and length 160."""
    return Study(lengths=(5, 10, 20, 40, 80, 160), seeds=5, updates=2500) if full else Study()


def run(options: Options) -> None:
    """Run a study, or what is left of it."""
    repeat_run.run(options.study, options.out, workers=options.workers)


def resume(folder: Path) -> None:
    """Go on with the study in a folder."""
    repeat_run.resume(folder)
