"""Sentence pairs as tokens: their vocabularies of words or sub-words, and the pairs that are left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from revtune.program.data.named_sets import SPLITS, Split
from revtune.program.data.pair_sources import Lines, PairUnit
from revtune.program.data.subwords import Subwords
from revtune.program.data.vocabulary import END, UNKNOWN, Words, vocabulary
from revtune.program.errors import Problem

Lexicon = Words | Subwords


@dataclass(frozen=True)
class Sentences:
    """A split as token ids, the target's ended, and what was left out.

    Attributes:
        pairs: (source ids, target ids) of each sentence.
        lines: the sentences as text, of those that are here.
        empty, long: how many had an empty side, or one beyond the limit.
    """

    pairs: list[tuple[list[int], list[int]]]
    lines: Lines
    empty: int = 0
    long: int = 0


@dataclass(frozen=True)
class Pairs:
    """A data set of sentence pairs: its two vocabularies, and its splits in them."""

    source: Lexicon
    target: Lexicon
    splits: dict[Split, Sentences] = field(repr=False)

    def digest(self) -> str:
        """A fingerprint of all of it, by which a run recognizes its data."""
        sha = hashlib.sha256(repr((self.source.to_json(), self.target.to_json())).encode())
        for split in SPLITS:
            sha.update(repr(self.splits[split].pairs).encode())
        return sha.hexdigest()

    def test_digest(self) -> str:
        """A fingerprint of the test text, whose words count in BLEU even if the vocabularies lack them."""
        return hashlib.sha256(repr(self.splits["test"].lines).encode()).hexdigest()


def words_of(text: Iterable[str], *, most: int, fewest: int) -> Words:
    """The `most` frequent words of a training text, of those that come up `fewest` times at least, and the two marks.

    Raises:
        Problem: there is no such word.
    """
    counts = Counter(word for line in text for word in line.split())
    words = [word for word, count in counts.most_common(most) if count >= fewest]
    if not set(words) - {END, UNKNOWN}:
        raise Problem(f"the vocabulary is empty: no word of the training text comes up {fewest} times")
    return Words(words + [mark for mark in (END, UNKNOWN) if mark not in words])


def sentences(lines: Lines, source: Lexicon, target: Lexicon, longest: int | None) -> Sentences:
    """A split as token ids; with a limit, pairs with an empty side or a longer one are left out."""
    pairs, kept, empty, long = [], [], 0, 0
    for pair in zip(lines.source, lines.target, strict=True):
        ids = (source.encode(pair[0]), [*target.encode(pair[1]), target.start])
        if longest is not None and not (ids[0] and len(ids[1]) > 1):  # the target's end is one
            empty += 1
        elif longest is not None and max(len(ids[0]), len(ids[1]) - 1) > longest:
            long += 1
        else:
            pairs.append(ids)
            kept.append(pair)
    return Sentences(pairs, Lines([a for a, _ in kept], [b for _, b in kept]), empty, long)


def vocabularies(train: Lines, unit: PairUnit, *, most: int, fewest: int) -> tuple[Lexicon, Lexicon]:
    """The vocabularies of a training text.

    Raises:
        Problem: one would be empty, or `most` is too few.
    """
    learn, learnt = words_of if unit == "word" else Subwords.of, list[Lexicon]()
    for side, text in (("source", train.source), ("target", train.target)):
        try:
            learnt.append(learn(text, most=most, fewest=fewest))
        except Problem as problem:
            raise Problem(f"{side} language: {problem}", code=problem.code) from problem
    return learnt[0], learnt[1]


def pairs(splits: dict[Split, Lines], lexicons: tuple[Lexicon, Lexicon], *, longest: int) -> Pairs:
    """All splits in two vocabularies; of the test nothing is left out.

    Raises:
        Problem: no pair is left to train, validate or test on.
    """
    kept = {split: sentences(splits[split], *lexicons, None if split == "test" else longest) for split in SPLITS}
    for split in SPLITS:
        if not kept[split].pairs:
            left_out = f"{kept[split].empty} have an empty side, {kept[split].long} are beyond {longest} words"
            raise Problem(f"no sentence pair of the {split} text can be used: {left_out}")
    return Pairs(*lexicons, kept)


def lexicon(stored: dict[str, Any]) -> Lexicon:
    """The vocabulary that `to_json` has stored.

    Raises:
        ValueError: it is none.
    """
    if stored["unit"] == "subword":
        return Subwords(stored["tokenizer"])
    if stored["unit"] != "word" or not isinstance(words := vocabulary(stored), Words):
        raise ValueError(f"unit must be word or subword, got {stored['unit']!r}")
    return words
