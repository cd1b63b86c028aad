"""Translations of a batch of sentences: beam search, and greedy as a beam of one.

A beam keeps the `width` most probable beginnings of a sentence. Ended ones are ranked by log-probability over
length ** penalty; a sentence is done when no beginning can still beat the worst of its `width` best ended ones.

Shapes: B sentences, W width, V words, S source steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from revtune.translator import Memory, State, Translator


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
    rows = len(lengths)
    memory = Memory(*(one.repeat_interleave(width, 0) for one in memory))
    state = moved(state, torch.arange(rows).repeat_interleave(width))
    most = [2 * int(length) + 10 for length in lengths] if longest is None else [longest] * rows
    beams = Beams(rows, width, penalty, most, start)
    for step in range(max(most)):
        logp, attention, state = model.step(beams.last(), state, memory)
        origin = beams.extend(logp, attention, final=step + 1 == max(most))
        if origin is None:
            break
        state = moved(state, origin)
    return beams.best()


def moved(state: State, rows: Tensor) -> State:
    """A recurrent state (L, B, H) of other rows."""
    if isinstance(state, Tensor):
        return state.index_select(1, rows)
    return tuple(one.index_select(1, rows) for one in state)


class Beams:
    """The beginnings that are kept of every sentence, and the translations that have ended.

    Args:
        rows: B.
        width: W.
        penalty: exponent of the length.
        most: most words of each sentence's translation.
        start: the word that begins and ends.
    """

    def __init__(self, rows: int, width: int, penalty: float, most: list[int], start: int) -> None:
        self.rows, self.width, self.penalty, self.most, self.start = rows, width, penalty, most, start
        self._scores = torch.full((rows, width), -math.inf)
        self._scores[:, 0] = 0.0
        self._words = torch.full((rows * width, 1), start)
        self._attention: list[Tensor] = []
        self._ended: list[list[Translation]] = [[] for _ in range(rows)]
        self._done = torch.zeros(rows, dtype=torch.bool)

    def last(self) -> Tensor:
        """The last word of every beginning, (B * W,)."""
        return self._words[:, -1]

    def extend(self, logp: Tensor, attention: Tensor, *, final: bool) -> Tensor | None:
        """Go on by the most probable words; which beginnings they go on from, (B * W,), or None when all are done."""
        words = logp.shape[1]
        total = self._scores.unsqueeze(-1) + logp.view(self.rows, self.width, words)
        best, index = total.flatten(1).topk(2 * self.width, 1)
        beam, word = index.div(words, rounding_mode="floor"), index % words
        origin = torch.zeros(self.rows, self.width, dtype=torch.long)
        chosen = torch.full((self.rows, self.width), self.start)
        scores = torch.full((self.rows, self.width), -math.inf)
        for row in (~self._done).nonzero().flatten().tolist():
            kept = 0
            for rank in range(2 * self.width):
                score, place = best[row, rank].item(), row * self.width + int(beam[row, rank])
                if score == -math.inf or kept == self.width:
                    break
                if int(word[row, rank]) == self.start:
                    if rank < self.width:
                        self._end(row, place, score, attention)
                    continue
                origin[row, kept], chosen[row, kept], scores[row, kept] = place, word[row, rank], score
                kept += 1
        length = self._words.shape[1]
        self._words = torch.cat([self._words[origin.flatten()], chosen.view(-1, 1)], 1)
        self._attention = [one[origin.flatten()] for one in [*self._attention, attention]]
        self._scores = scores
        for row in (~self._done).nonzero().flatten().tolist():
            if final or length >= self.most[row]:
                self._stop(row)
            else:
                self._done[row] = self._settled(row, length)
        return None if bool(self._done.all()) else origin.flatten()

    def _end(self, row: int, place: int, score: float, attention: Tensor) -> None:
        """Keep a translation that ends here."""
        words = self._words[place, 1:].tolist()
        seen = torch.stack([one[place] for one in [*self._attention, attention]])[:-1]
        self._ended[row].append(Translation(words, score / self._over(len(words) + 1), seen))

    def _stop(self, row: int) -> None:
        """A sentence may not grow any more: its best beginning counts if nothing has ended."""
        self._done[row] = True
        if not self._ended[row] and self._scores[row, 0] > -math.inf:
            place = row * self.width
            words = self._words[place, 1:].tolist()
            seen = torch.stack([one[place] for one in self._attention])
            self._ended[row].append(Translation(words, self._scores[row, 0].item() / self._over(len(words)), seen))

    def _settled(self, row: int, length: int) -> bool:
        """Whether no beginning can still become one of the `width` best."""
        ended = sorted((one.score for one in self._ended[row]), reverse=True)
        if len(ended) < self.width:
            return False
        most = self._over(self.most[row] + 1) if self.penalty > 0 else 1.0
        return self._scores[row, 0].item() / most < ended[self.width - 1]

    def _over(self, length: int) -> float:
        return float(length**self.penalty)

    def best(self) -> list[Translation]:
        """The best translation of each sentence; one of no words where there is none."""
        empty = Translation([], -math.inf, torch.zeros(0, 0))
        return [max(ended, key=lambda one: one.score, default=empty) for ended in self._ended]
