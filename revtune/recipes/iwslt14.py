"""IWSLT 2014, German to English: two layers with attention; --full for the papers' settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from revtune import translation, translation_run
from revtune.translation import Study
from revtune.translation_run import Options as Options

translates = True


def recipe(*, full: bool = False) -> Study:
    """Two layers of 300 units, in full of 600, that attend to embeddings and a slice."""
    hidden = 600 if full else 300
    study = translation.recipe("iwslt14", full=full, layers=2, hidden=hidden, sliced=hidden // 10)
    return replace(study, text=replace(study.text, source="de", target="en"))


def run(options: Options) -> None:
    """Learn to translate."""
    translation_run.start("iwslt14", options)


def resume(folder: Path) -> None:
    """Go on with the run in a folder."""
    translation_run.resume(folder)
