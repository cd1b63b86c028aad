"""Multi30K, English to German: a reversible encoder and decoder with attention; --full for the papers' settings."""

from __future__ import annotations

from revtune.program.data.pair_sources import PairUnit
from revtune.program.layers import Model
from revtune.program.translation import task as translation
from revtune.program.translation.task import TranslationStudy

kind = "translation"


def recipe(*, full: bool = False, model: Model = "revgru", unit: PairUnit = "word") -> TranslationStudy:
    """One layer of 300 units that attends to embeddings and a slice of 20 units."""
    return translation.recipe("multi30k", full=full, model=model, unit=unit)
