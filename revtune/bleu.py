"""BLEU of translations, by sacrebleu, with the signature that says how it was computed."""

from __future__ import annotations

from collections.abc import Sequence

from revtune.moses import Form


def bleu(found: Sequence[str], wanted: Sequence[str], form: Form) -> tuple[float, str]:
    """BLEU of translations against one reference each, and sacrebleu's signature.

    Sentences of tokens are compared as they are, lower-cased already, as in the papers, be they made of words or of
    sub-words; plain ones are tokenized by sacrebleu, in lower case.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="13a" if form == "plain" else "none", lowercase=True, force=True)
    score = metric.corpus_score(list(found), [list(wanted)])
    return float(score.score), str(metric.get_signature())
