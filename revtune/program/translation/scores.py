"""BLEU of translations, by sacrebleu, with the signature that says how it was computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from revtune.program.data.moses import TextForm
from revtune.program.translation.interpreter import Decoding, Interpreter
from revtune.program.translation.task import TranslationTask
from revtune.program.translation.translator import Translator


def bleu(found: Sequence[str], wanted: Sequence[str], form: TextForm) -> tuple[float, str]:
    """BLEU of translations against one reference each, and sacrebleu's signature.

    Sentences of tokens are compared as they are, lower-cased already, as in the papers, be they made of words or of
    sub-words; plain ones are tokenized by sacrebleu, in lower case.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="13a" if form == "plain" else "none", lowercase=True, force=True)
    score = metric.corpus_score(list(found), [list(wanted)])
    return float(score.score), str(metric.get_signature())


def scored(task: TranslationTask, model: Translator, how: Decoding) -> dict[str, Any]:
    """BLEU of the test sentences, by beam search and greedy."""
    lines, figures = task.pairs.splits["test"].lines, dict[str, Any]()
    for name, one in (("bleu", how), ("greedy_bleu", dataclasses.replace(how, beam=1))):
        interpreter = Interpreter(model, task.pairs.source, task.pairs.target, one)
        found = [translated.text for translated in interpreter(lines.source)]
        figures[name], figures["signature"] = bleu(found, lines.target, task.form)
    return figures
