"""IWSLT 2014, German to English: two layers with attention; --full for the papers' settings.

The files are `iwslt14.tokenized.de-en/{train,valid,test}.{de,en}`, as prepare-iwslt14 makes them. Where they are not
there `iwslt14-de-en-small` stands in, a sample of 8,627 training pairs with valid and test whole: a run says so when it
begins, and its scores do not compare with those of the 160,000 pairs. Either text is tokenized and lower-cased;
sub-words are learnt from that too, and BLEU is of its tokens. The hub's text is tokenized here for words, and left as
it is for sub-words.
"""

from __future__ import annotations

from dataclasses import replace

from revtune.program.data.pair_sources import PairUnit
from revtune.program.layers import Model
from revtune.program.translation import task as translation
from revtune.program.translation.task import TranslationStudy

kind = "translation"


def recipe(*, full: bool = False, model: Model = "revgru", unit: PairUnit = "word") -> TranslationStudy:
    """Two layers of 300 units, in full of 600, that attend to embeddings and a slice."""
    hidden = 600 if full else 300
    study = translation.recipe(
        "iwslt14", full=full, layers=2, hidden=hidden, sliced=hidden // 10, model=model, unit=unit
    )
    return replace(study, text=replace(study.text, source="de", target="en"))
