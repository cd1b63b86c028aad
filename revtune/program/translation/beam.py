"""Translations of a batch of sentences: beam search, and greedy as a beam of one.

A beam keeps the `width` most probable beginnings of a sentence. Of those that end the best has the highest
log-probability over length ** penalty; a sentence is done when no beginning can still beat it, and the model then
computes nothing more for it. A beginning is a word and the beginning before it, so that what many have in common is
kept once, and what none of them has any more not at all.

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
    """A translation.

    Attributes:
        words: its words, without an end.
        score: log-probability over length ** penalty.
        attention: (T, S), of each of its words.
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
    memory = Memory(*(one.repeat_interleave(width, 0) for one in memory))
    state = moved(state, torch.arange(len(lengths)).repeat_interleave(width))
    most = [2 * int(length) + 10 if longest is None else longest for length in lengths]
    beams = [Beam(width, penalty, one, start) for one in most]
    going = [beam for beam in beams if not beam.done]
    while going:
        words = torch.tensor([one.word for beam in going for one in beam.beginnings])
        logp, attention, state = model.step(words, state, memory)
        going, origin = extended(going, logp, attention)
        state = moved(state, origin)
        if len(origin) < len(words):
            memory = Memory(*(one.index_select(0, origin) for one in memory))
    return [beam.best(len(source)) for beam in beams]


def moved(state: State, rows: Tensor) -> State:
    """A recurrent state (L, B, H) of other rows."""
    if isinstance(state, Tensor):
        return state.index_select(1, rows)
    return tuple(one.index_select(1, rows) for one in state)


class Beginning(NamedTuple):
    """What a translation may begin with: a word after another beginning, and the attention (S,) that it came of."""

    word: int
    before: Beginning | None = None
    attention: Tensor | None = None


class Step(NamedTuple):
    """A word to go on by from the beginning at a place, 0 to W - 1, and the log-probability that it comes to."""

    place: int
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

    def extend(self, steps: list[Step], attention: Tensor) -> list[int]:
        """Go on by the best of 2 W steps, best first, the W beginnings attending so, (W, S); the places gone on from.

        An end counts if fewer than W words to go on by are more probable.
        """
        self._length += 1
        kept: list[Step] = []
        for step in steps:
            if step.score == -math.inf or len(kept) == self.width:
                break
            if step.word != self.start:
                kept.append(step)
            else:
                self._end(step.score, self.beginnings[step.place])
        self._keep(kept, attention)
        if self._length >= self.most and self._best[0] == -math.inf:
            self._end(self.scores[0], self.beginnings[0])
        self.done = not kept or self._length >= self.most or self._settled()
        return [step.place for step in kept] + [0] * (self.width - len(kept))

    def _keep(self, kept: list[Step], attention: Tensor) -> None:
        seen = {place: attention[place].clone() for place in {step.place for step in kept}}
        lacking = self.width - len(kept)
        grown = [Beginning(step.word, self.beginnings[step.place], seen[step.place]) for step in kept]
        self.beginnings = grown + [Beginning(self.start)] * lacking
        self.scores = [step.score for step in kept] + [-math.inf] * lacking

    def _end(self, score: float, beginning: Beginning) -> None:
        """Keep a translation that ends here, if it is the best so far."""
        score /= self._over(self._length)
        if score > self._best[0]:
            self._best = score, beginning

    def _settled(self) -> bool:
        """Whether no beginning can still become the best, or, in a greedy search, a translation has ended."""
        if self.width == 1:
            return self._best[0] > -math.inf
        most = self._over(self.most + 1) if self.penalty > 0 else 1.0
        return self.scores[0] / most < self._best[0]

    def _over(self, length: int) -> float:
        return float(length**self.penalty)

    def best(self, positions: int) -> Translation:
        """The best translation, of so many source positions; one of no words where there is none."""
        score, one = self._best
        words, attention = list[int](), list[Tensor]()
        while one.before is not None and one.attention is not None:
            words.append(one.word)
            attention.append(one.attention)
            one = one.before
        return Translation(words[::-1], score, torch.stack(attention[::-1]) if words else torch.zeros(0, positions))


def extended(beams: list[Beam], logp: Tensor, attention: Tensor) -> tuple[list[Beam], Tensor]:
    """Go on by the most probable words of each beginning.

    Args:
        beams: R of them, none done.
        logp, attention: of the words after each beginning (R * W, V), and of each to the source (R * W, S).

    Returns:
        The beams that are not done yet, and which rows their beginnings go on from.
    """
    width, words, origin = beams[0].width, logp.shape[1], list[int]()
    scores = torch.tensor([beam.scores for beam in beams], dtype=logp.dtype)
    total = scores.unsqueeze(-1) + logp.view(len(beams), width, words)
    best, index = (one.tolist() for one in total.flatten(1).topk(2 * width, 1))
    for number, beam in enumerate(beams):
        steps = [Step(one // words, one % words, score) for one, score in zip(index[number], best[number], strict=True)]
        first = number * width
        places = beam.extend(steps, attention[first : first + width])
        origin += [first + place for place in places] if not beam.done else []
    return [beam for beam in beams if not beam.done], torch.tensor(origin, dtype=torch.long)
