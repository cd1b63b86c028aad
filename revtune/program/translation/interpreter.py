"""Sentences translated: words of the vocabulary looked up, unknown ones taken over, batches of like length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from revtune.program.data.buckets import padded
from revtune.program.data.pairs import Lexicon
from revtune.program.data.vocabulary import UNKNOWN, Words
from revtune.program.translation.beam import Translation, search
from revtune.program.translation.translator import Translator

POSITIONS = 16_384
"""Most source positions, padding among them, that are translated together."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How sentences are translated."""

    beam: int = 5
    """Beginnings of a translation that are kept; 1 is greedy."""
    penalty: float = 1.0
    """Exponent of the length that log-probabilities are divided by."""
    batch: int = 64
    """Sentences translated together, fewer where they are very long."""


@dataclass(frozen=True)
class Translated:
    """A sentence's translation.

    Attributes:
        text: it.
        source, target: the tokens as text.
        attention: (T, S) of each target token to each source token.
    """

    text: str
    source: list[str]
    target: list[str]
    attention: Tensor


class Interpreter:
    """Translates by a model and its vocabularies.

    Args:
        model: in evaluation mode.
        source, target: vocabularies.
        how: beam and penalty.
        longest: tokens of a sentence beyond which the rest of it is left out; None for no limit. Time and memory grow
            with the square of a sentence's length.
    """

    def __init__(
        self, model: Translator, source: Lexicon, target: Lexicon, how: Decoding, longest: int | None = None
    ) -> None:
        self.model, self.source, self.target, self.how, self.longest = model, source, target, how, longest

    def __call__(self, sentences: Sequence[str]) -> list[Translated]:
        """The translation of each; of an empty one the empty one."""
        ids = [self.source.encode(sentence)[: self.longest] for sentence in sentences]
        found: list[Translated] = [Translated("", [], [], torch.zeros(0, 0)) for _ in sentences]
        for some in batches([len(one) for one in ids], self.how.batch):
            source, lengths = padded([ids[one] for one in some])
            done = search(
                self.model, source, lengths, start=self.target.start, width=self.how.beam, penalty=self.how.penalty
            )
            for one, translation in zip(some, done, strict=True):
                found[one] = self._told(sentences[one], ids[one], translation)
        return found

    def _told(self, sentence: str, ids: list[int], translation: Translation) -> Translated:
        seen = translation.attention[:, : len(ids)]
        if not isinstance(self.target, Words) or not isinstance(self.source, Words):
            tokens = [self._piece(self.source, one) for one in ids]
            pieces = [self._piece(self.target, one) for one in translation.words]
            assert not isinstance(self.target, Words)
            return Translated(self.target.text(translation.words), tokens, pieces, seen)
        read = sentence.split()[: len(ids)]
        unknown = self.target.index[UNKNOWN]
        words = [
            read[int(seen[place].argmax())] if word == unknown else self.target.words[word]
            for place, word in enumerate(translation.words)
        ]
        return Translated(" ".join(words), read, words, seen)

    @staticmethod
    def _piece(lexicon: Lexicon, token: int) -> str:
        return lexicon.words[token] if isinstance(lexicon, Words) else lexicon.text([token])


def batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The numbers of the sentences that are not empty, shortest first, so many together within `POSITIONS`."""
    found: list[list[int]] = []
    for one in sorted((one for one in range(len(lengths)) if lengths[one]), key=lambda one: lengths[one]):
        if found and len(found[-1]) < size and (len(found[-1]) + 1) * lengths[one] <= POSITIONS:
            found[-1].append(one)
        else:
            found.append([one])
    return found
