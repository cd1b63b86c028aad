"""Vocabularies of text: its bytes, or a list of its words."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from revtune.program.data.lines import split_lines

TextUnit = Literal["byte", "word"]

END = "<eos>"

UNKNOWN = "<unk>"


class Bytes:
    """The 256 bytes as a vocabulary."""

    unit: TextUnit = "byte"
    start = ord("\n")

    def __len__(self) -> int:
        return 256

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of a text."""
        return list(text.encode("utf-8", "surrogateescape"))  # bytes of a command line that were no UTF-8

    def unknown(self, text: str) -> list[str]:
        """The words of a text that this vocabulary lacks, which are none."""
        return []

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """The tokens as text while they come; bytes that are no UTF-8 become U+FFFD."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            yield decoder.decode(bytes([token]))
        yield decoder.decode(b"", final=True)

    def to_json(self) -> dict[str, Any]:
        """What `vocabulary` needs to make this one again, ready for JSON."""
        return {"unit": "byte"}


class Words:
    """A list of words as a vocabulary, with `<eos>` for the end of a line and `<unk>` for every word not in it."""

    unit: TextUnit = "word"

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
        """The words' numbers, their places in the list."""
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

    def to_json(self) -> dict[str, Any]:
        """What `vocabulary` needs to make this one again, ready for JSON."""
        return {"unit": "word", "words": self.words}


Vocabulary = Bytes | Words


def vocabulary(stored: dict[str, Any]) -> Vocabulary:
    """The vocabulary that `to_json` has stored.

    Raises:
        ValueError: for another unit, or words that are not distinct strings with both marks among them.
    """
    if stored["unit"] not in ("byte", "word"):
        raise ValueError(f"unit must be byte or word, got {stored['unit']!r}")
    if stored["unit"] == "byte":
        return Bytes()
    words = stored["words"]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("words must be a list of strings")
    if len(set(words)) < len(words) or not {END, UNKNOWN} <= set(words):
        raise ValueError(f"words must be distinct, {END} and {UNKNOWN} among them")
    return Words(words)


def split_words(text: str) -> list[str]:
    """The words of a text with `<eos>` after each of its lines, also after the empty ones."""
    return [word for line in split_lines(text) for word in [*line.split(), END]]
