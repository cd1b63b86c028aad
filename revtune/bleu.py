"""BLEU of translations, by sacrebleu, with the signature that says how it was computed."""

from __future__ import annotations

from collections.abc import Sequence

from revtune.pairs import Unit


def bleu(found: Sequence[str], wanted: Sequence[str], unit: Unit) -> tuple[float, str]:
    """BLEU of translations against one reference each, and sacrebleu's signature.

    Sentences in words are compared as they are, being tokenized and lower-cased already, as in the papers; those of
    sub-words are plain text, which sacrebleu tokenizes, in lower case.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="none" if unit == "word" else "13a", lowercase=True, force=True)
    score = metric.corpus_score(list(found), [list(wanted)])
    return float(score.score), str(metric.get_signature())
