"""BLEU of translations, by sacrebleu, with the signature that says how it was computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from revtune.program.data.moses import TextForm
from revtune.program.translation.interpreter import Decoding, Interpreter
from revtune.program.translation.task import TranslationTask
from revtune.program.translation.translator import Translator


def bleu(translations: Sequence[str], references: Sequence[str], form: TextForm) -> tuple[float, str]:
    """BLEU of translations against one reference each, and sacrebleu's signature.

    Tokenized sentences, of words or of sub-words, are lower-cased already and compared as they are, as in the papers.
    Plain ones sacrebleu tokenizes and lower-cases.
    """
    # imported here, as it is an extra
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="13a" if form == "plain" else "none", lowercase=True, force=True)
    score = metric.corpus_score(list(translations), [list(references)])
    return float(score.score), str(metric.get_signature())


def scored(task: TranslationTask, model: Translator, decoding: Decoding) -> dict[str, Any]:
    """BLEU of the test sentences, by beam search and greedy, and sacrebleu's signature."""
    lines, scores = task.pairs.splits["test"].lines, dict[str, Any]()
    for name, one in (("bleu", decoding), ("greedy_bleu", dataclasses.replace(decoding, beam=1))):
        interpreter = Interpreter(model, task.pairs.source, task.pairs.target, one)
        translations = [translated.text for translated in interpreter(lines.source)]
        scores[name], scores["signature"] = bleu(translations, lines.target, task.form)
    return scores
