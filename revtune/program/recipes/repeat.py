"""Repeat the previous token, ever longer: where nothing can be forgotten, a net fails; --full for a larger study."""

from __future__ import annotations

from revtune.program.tasks.repeat import RepeatStudy

kind = "repeat"


def recipe(*, full: bool = False) -> RepeatStudy:
    """Three minutes on two cores; in full, ten times the updates, five seeds and length 160."""
    return RepeatStudy(lengths=(5, 10, 20, 40, 80, 160), seeds=5, updates=2500) if full else RepeatStudy()
