"""Sentences translated: tokens looked up in the vocabulary, unknown words copied, batches of like length."""

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
        text: the translation.
        source, target: the tokens of both sentences, as text.
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
        decoding: beam, penalty and batch.
        longest: tokens of a sentence beyond which the rest of it is left out; None for no limit. Time and memory grow
            with the square of a sentence's length.
    """

    def __init__(
        self, model: Translator, source: Lexicon, target: Lexicon, decoding: Decoding, longest: int | None = None
    ) -> None:
        self.model, self.source, self.target = model, source, target
        self.decoding, self.longest = decoding, longest

    def __call__(self, sentences: Sequence[str]) -> list[Translated]:
        """The translation of each sentence; that of an empty one is empty."""
        ids = [self.source.encode(sentence)[: self.longest] for sentence in sentences]
        translations = [Translated("", [], [], torch.zeros(0, 0)) for _ in sentences]
        start, width, penalty = self.target.start, self.decoding.beam, self.decoding.penalty
        for numbers in batches([len(tokens) for tokens in ids], self.decoding.batch):
            source, lengths = padded([ids[number] for number in numbers])
            best = search(self.model, source, lengths, start=start, width=width, penalty=penalty)
            for number, translation in zip(numbers, best, strict=True):
                translations[number] = self._in_text(sentences[number], ids[number], translation)
        return translations

    def _in_text(self, sentence: str, ids: list[int], translation: Translation) -> Translated:
        """A translation as text; for an unknown word stands the source's word that it attended to most."""
        attention = translation.attention[:, : len(ids)]
        if not isinstance(self.target, Words) or not isinstance(self.source, Words):
            tokens = [self._piece(self.source, token) for token in ids]
            pieces = [self._piece(self.target, token) for token in translation.words]
            assert not isinstance(self.target, Words)
            return Translated(self.target.text(translation.words), tokens, pieces, attention)
        read = sentence.split()[: len(ids)]
        unknown = self.target.index[UNKNOWN]
        words = [
            read[int(weights.argmax())] if word == unknown else self.target.words[word]
            for word, weights in zip(translation.words, attention, strict=True)
        ]
        return Translated(" ".join(words), read, words, attention)

    @staticmethod
    def _piece(lexicon: Lexicon, token: int) -> str:
        return lexicon.words[token] if isinstance(lexicon, Words) else lexicon.text([token])


def batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The numbers of the sentences that are not empty, shortest first, at most `size` of them together.

    Args:
        lengths: of the sentences.
        size: fewer come together where they would have more than `POSITIONS` positions.
    """
    together: list[list[int]] = []
    for number in sorted((number for number, length in enumerate(lengths) if length), key=lengths.__getitem__):
        # the sentence is the longest so far, to whose length the others are padded
        if together and len(together[-1]) < size and (len(together[-1]) + 1) * lengths[number] <= POSITIONS:
            together[-1].append(number)
        else:
            together.append([number])
    return together
