"""Multi30K, English to German: a reversible encoder and decoder with attention; --full for the papers' settings."""

from __future__ import annotations

from pathlib import Path

from revtune.program.data.pairs import Unit
from revtune.program.translation import run as translation_run
from revtune.program.translation import task as translation
from revtune.program.translation.run import Options
from revtune.program.translation.task import Study
from revtune.program.translation.translator import Model

translates = True


def recipe(*, full: bool = False, model: Model = "revgru", unit: Unit = "word") -> Study:
    """One layer of 300 units that attends to embeddings and a slice of 20 units."""
    return translation.recipe("multi30k", full=full, model=model, unit=unit)


def run(options: Options) -> None:
    """Learn to translate."""
    translation_run.start("multi30k", options)


def resume(folder: Path) -> None:
    """Go on with the run in a folder."""
    translation_run.resume(folder)
