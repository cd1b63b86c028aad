"""Text as tokens: vocabularies, corpora, and the segments that a training step reads.

A text of N tokens is cut into B streams, side by side as the columns of a (N // B, B) tensor; a step reads the next
T rows of it as inputs and the same rows one further down as targets.
"""

from __future__ import annotations

import codecs
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from revtune.program.errors import Problem

Unit = Literal["byte", "word"]


END = "<eos>"


UNKNOWN = "<unk>"


SPLITS = ("train", "valid", "test")


FILES = {"ptb": "ptb/ptb.{}.txt", "wikitext2": "wikitext-2/wiki.{}.tokens"}


class Bytes:
    """The 256 bytes as a vocabulary."""

    unit: Unit = "byte"
    start = ord("\n")

    def __len__(self) -> int:
        return 256

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of a text."""
        return list(text.encode("utf-8", "surrogateescape"))

    def unknown(self, text: str) -> list[str]:
        """The words of a text that this vocabulary lacks: none."""
        return []

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """The tokens as text while they come; bytes that are no UTF-8 become U+FFFD."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            yield decoder.decode(bytes([token]))
        yield decoder.decode(b"", final=True)

    def facts(self) -> dict[str, Any]:
        """What `vocabulary` needs to make this one again, ready for JSON."""
        return {"unit": "byte"}


class Words:
    """A list of words as a vocabulary, with `<eos>` for the end of a line and `<unk>` for every word not in it."""

    unit: Unit = "word"

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.index = {word: number for number, word in enumerate(self.words)}
        self.start = self.index[END]

    @classmethod
    def of(cls, text: Sequence[str], most: int) -> Words:
        """The `most` frequent words of a training text, ties in order of appearance, and the two marks."""
        words = [word for word, _ in Counter(text).most_common(most)]
        return cls(words + [mark for mark in (END, UNKNOWN) if mark not in words])

    def __len__(self) -> int:
        return len(self.words)

    def numbers(self, words: Iterable[str]) -> list[int]:
        """The words' places in the list."""
        unknown = self.index[UNKNOWN]
        return [self.index.get(word, unknown) for word in words]

    def encode(self, text: str) -> list[int]:
        """The words of a text, `<eos>` between its lines."""
        return self.numbers(split_words(text)[:-1])

    def unknown(self, text: str) -> list[str]:
        """The words of a text that this vocabulary lacks."""
        return [word for word in text.split() if word not in self.index]

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """The tokens as text while they come: a space after each word, a new line for `<eos>`."""
        for token in tokens:
            yield "\n" if token == self.start else self.words[token] + " "

    def facts(self) -> dict[str, Any]:
        """What `vocabulary` needs to make this one again, ready for JSON."""
        return {"unit": "word", "words": self.words}


Vocabulary = Bytes | Words


def vocabulary(facts: dict[str, Any]) -> Vocabulary:
    """The vocabulary whose `facts()` these are.

    Raises:
        ValueError: for another unit, or words that are not distinct strings with both marks among them.
    """
    if facts["unit"] not in ("byte", "word"):
        raise ValueError(f"unit must be byte or word, got {facts['unit']!r}")
    if facts["unit"] == "byte":
        return Bytes()
    words = facts["words"]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("words must be a list of strings")
    if len(set(words)) < len(words) or not {END, UNKNOWN} <= set(words):
        raise ValueError(f"words must be distinct, {END} and {UNKNOWN} among them")
    return Words(words)


def split_words(text: str) -> list[str]:
    """The words of a text with `<eos>` after each of its lines, also after the empty ones."""
    lines = text.split("\n")
    if lines[-1] == "" and len(lines) > 1:
        lines.pop()
    return [word for line in lines for word in [*line.split(), END]]


@dataclass(frozen=True)
class Corpus:
    """The three texts of a study as token tensors of shape (N,), with their vocabulary."""

    vocabulary: Vocabulary
    train: Tensor
    valid: Tensor
    test: Tensor

    def digest(self) -> str:
        """A fingerprint of all tokens, by which a run knows its data again."""
        sha = hashlib.sha256(repr(self.vocabulary.facts()).encode())
        for tokens in (self.train, self.valid, self.test):
            sha.update(len(tokens).to_bytes(8, "little"))
            sha.update(tokens.numpy().tobytes())
        return sha.hexdigest()


def byte_corpus(train: bytes, valid: bytes, test: bytes) -> Corpus:
    """Three texts as bytes."""
    parts = [torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in (train, valid, test)]
    return Corpus(Bytes(), *parts)


def word_corpus(train: list[str], valid: list[str], test: list[str], *, most: int) -> Corpus:
    """Three texts as words; the vocabulary is that of the first."""
    words = Words.of(train, most)
    parts = [torch.tensor(words.numbers(part), dtype=torch.int32) for part in (train, valid, test)]
    return Corpus(words, *parts)


def streams(tokens: Tensor, batch: int, *, name: str) -> Tensor:
    """Tokens (N,) cut into `batch` streams, as the columns of a (N // batch, batch) tensor; the rest is left out.

    Raises:
        Problem: when a stream would have fewer than two tokens.
    """
    rows = len(tokens) // batch
    if rows < 2:
        raise Problem(f"the {name} text has {len(tokens)} tokens, too few for {batch} streams of at least 2")
    return tokens[: rows * batch].view(batch, rows).t().contiguous()


def segment(rows: Tensor, position: int, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (T, B), int64, of the `length` steps from `position` on, fewer at the end of the text."""
    stop = min(position + length, len(rows) - 1)
    return rows[position:stop].long(), rows[position + 1 : stop + 1].long()
