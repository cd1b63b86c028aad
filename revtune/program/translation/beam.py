"""Translations of a batch of sentences: beam search, and greedy as a beam of one.

A beam keeps the `width` most probable beginnings of a translation. Of those that end the best has the highest
log-probability over length ** penalty. A sentence is done when no beginning can still beat it, and the model then
computes nothing more for it. A beginning is a word and the beginning before it, so that what many share is kept once,
and what none of them continues is freed.

Shapes: B sentences, R of them that are not done, W width, V words, S source steps, T words of a translation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from revtune.program.translation.translator import Memory, State, Translator


@dataclass
class Translation:
    """A translation as token ids.

    Attributes:
        words: its words, without the end.
        score: log-probability over length ** penalty.
        attention: (T, S), of each of its words to the source.
    """

    words: list[int]
    score: float
    attention: Tensor = field(repr=False)


@torch.no_grad()
def search(
    model: Translator, source: Tensor, lengths: Tensor, *, start: int, width: int = 5, penalty: float = 1.0,
    longest: int | None = None,
) -> list[Translation]:  # fmt: skip
    """The best translation of each sentence.

    Args:
        model: in evaluation mode.
        source: (S, B), with `lengths` (B,).
        start: the word that decoding begins with and sentences end with.
        width: W; 1 is greedy.
        penalty: exponent of the length, 0 for none.
        longest: most words of a translation; by default twice the source's and ten.
    """
    memory, state = model.remembered(source, lengths)
    memory = Memory(*(tensor.repeat_interleave(width, 0) for tensor in memory))
    state = moved(state, torch.arange(len(lengths)).repeat_interleave(width))
    most = [2 * int(length) + 10 if longest is None else longest for length in lengths]
    beams = [Beam(width, penalty, words, start) for words in most]
    going = [beam for beam in beams if not beam.done]
    while going:
        words = torch.tensor([beginning.word for beam in going for beginning in beam.beginnings])
        logp, attention, state = model.step(words, state, memory)
        going, origin = extended(going, logp, attention)
        state = moved(state, origin)
        if len(origin) < len(words):  # some are done; rows of one sentence have the same memory, in whatever order
            memory = Memory(*(tensor.index_select(0, origin) for tensor in memory))
    return [beam.best(len(source)) for beam in beams]


def moved(state: State, rows: Tensor) -> State:
    """A recurrent state (L, B, H), taken from these rows of it."""
    if isinstance(state, Tensor):
        return state.index_select(1, rows)
    return tuple(part.index_select(1, rows) for part in state)


class Beginning(NamedTuple):
    """What a translation may begin with: a word after another beginning, and the attention (S,) it was found by."""

    word: int
    before: Beginning | None = None
    attention: Tensor | None = None


class Extension(NamedTuple):
    """A word that the beginning of an index, 0 to W - 1, may go on by, and their log-probability together."""

    beginning: int
    word: int
    score: float


class Beam:
    """The beginnings of a sentence's translation that are kept, and the best that has ended.

    Args:
        width: W.
        penalty: exponent of the length.
        most: most words of the translation.
        start: the word that begins and ends.

    Attributes:
        beginnings, scores: W of them and their log-probabilities, best first; minus infinity where there are fewer.
        done: whether it goes no further.
    """

    def __init__(self, width: int, penalty: float, most: int, start: int) -> None:
        self.width, self.penalty, self.most, self.start = width, penalty, most, start
        self.beginnings, self.scores = [Beginning(start)] * width, [0.0] + [-math.inf] * (width - 1)
        self.done = most < 1
        self._length = 0
        self._best = -math.inf, Beginning(start)

    def extend(self, extensions: list[Extension], attention: Tensor) -> list[int]:
        """Go on by the best extensions.

        An end counts if fewer than W other extensions are more probable.

        Args:
            extensions: 2 W of them, best first: should all W beginnings end, W are left to go on by.
            attention: (W, S), of the beginnings to the source.

        Returns:
            For each new beginning the index of the one that it goes on from.
        """
        self._length += 1
        kept: list[Extension] = []
        for extension in extensions:
            if extension.score == -math.inf or len(kept) == self.width:
                break
            if extension.word != self.start:
                kept.append(extension)
            else:
                self._end(extension.score, self.beginnings[extension.beginning])
        self._keep(kept, attention)
        if self._length >= self.most and self._best[0] == -math.inf:
            self._end(self.scores[0], self.beginnings[0])
        self.done = not kept or self._length >= self.most or self._settled()
        return [extension.beginning for extension in kept] + [0] * (self.width - len(kept))

    def _keep(self, kept: list[Extension], attention: Tensor) -> None:
        # copied, as a row of `attention` would keep those of all sentences
        rows = {index: attention[index].clone() for index in {extension.beginning for extension in kept}}
        lacking = self.width - len(kept)
        grown = [Beginning(word, self.beginnings[index], rows[index]) for index, word, _ in kept]
        self.beginnings = grown + [Beginning(self.start)] * lacking
        self.scores = [extension.score for extension in kept] + [-math.inf] * lacking

    def _end(self, score: float, beginning: Beginning) -> None:
        """Keep a translation that ends here, if it is the best so far."""
        score /= self._over(self._length)
        if score > self._best[0]:
            self._best = score, beginning

    def _settled(self) -> bool:
        """Whether no beginning can still become the best, or, in a greedy search, a translation has ended."""
        if self.width == 1:
            return self._best[0] > -math.inf
        # log-probabilities are below 0 and only fall: the longest length is the most that divides them
        most = self._over(self.most + 1) if self.penalty > 0 else 1.0
        return self.scores[0] / most < self._best[0]

    def _over(self, length: int) -> float:
        return float(length**self.penalty)

    def best(self, positions: int) -> Translation:
        """The best translation, of so many source positions; one of no words where there is none."""
        score, beginning = self._best
        words, attention = list[int](), list[Tensor]()
        while beginning.before is not None and beginning.attention is not None:
            words.append(beginning.word)
            attention.append(beginning.attention)
            beginning = beginning.before
        return Translation(words[::-1], score, torch.stack(attention[::-1]) if words else torch.zeros(0, positions))


def extended(beams: list[Beam], logp: Tensor, attention: Tensor) -> tuple[list[Beam], Tensor]:
    """Go on by the most probable words of each beginning.

    Args:
        beams: R of them, none done.
        logp: log-probabilities of the words after each beginning, (R * W, V).
        attention: of each beginning to the source, (R * W, S).

    Returns:
        The beams that are not done yet, and which rows their beginnings go on from.
    """
    width, words, origin = beams[0].width, logp.shape[1], list[int]()
    scores = torch.tensor([beam.scores for beam in beams], dtype=logp.dtype)
    total = scores.unsqueeze(-1) + logp.view(len(beams), width, words)
    best, index = (tensor.tolist() for tensor in total.flatten(1).topk(2 * width, 1))
    for number, beam in enumerate(beams):
        pairs = zip(index[number], best[number], strict=True)  # an index is that of beginning and word together
        extensions = [Extension(flat // words, flat % words, score) for flat, score in pairs]
        first = number * width
        indices = beam.extend(extensions, attention[first : first + width])
        origin += [first + index for index in indices] if not beam.done else []
    return [beam for beam in beams if not beam.done], torch.tensor(origin, dtype=torch.long)
