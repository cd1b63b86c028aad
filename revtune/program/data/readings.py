"""How a text becomes parts, lines and words: by its lines, and as earlier versions did, for runs that learnt so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from revtune.program.data.lines import WINDOW, cut, read, split_lines
from revtune.program.data.vocabulary import END, split_words
from revtune.program.errors import Problem
from revtune.program.files import read_bytes

Parts = tuple[bytes, bytes, bytes]
"""The texts to train, validate and test on."""


class Reading(NamedTuple):
    """A way to read texts.

    Attributes:
        read: a file's bytes.
        parts: a text in three, for training, validation and test.
        lines: a text's lines.
        words: a text's words with `<eos>` after each line.
        first: so many of these words at most, from their beginning.
    """

    read: Callable[[Path], bytes]
    parts: Callable[[bytes], Parts]
    lines: Callable[[str], list[str]]
    words: Callable[[str], list[str]]
    first: Callable[[list[str], int], list[str]]


def parts_by_lines(content: bytes) -> Parts:
    """Three parts, by a `cut` up to 90% and one up to 95%.

    Long lines are kept whole where that leaves 5% to 15% of the content for the test and 2% to 15% for validation.
    """
    second = cut(content, len(content) * 95 // 100)
    first = cut(content, min(len(content) * 90 // 100, second - len(content) // 50))
    return content[:first], content[first:second], content[second:]


def parts_by_bytes(content: bytes) -> Parts:
    """Three parts cut after the last LF in the 2% before 90% and 95%, else just there, in the middle of anything."""
    first, second = (_last_feed(content, len(content) * share // 100) for share in (90, 95))
    return content[:first], content[first:second], content[second:]


def _last_feed(content: bytes, near: int) -> int:
    return content.rfind(b"\n", near - len(content) // 50, near) + 1 or near


def lines_by_feeds(text: str) -> list[str]:
    """The lines of a text, which end at LF alone."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" and len(lines) > 1 else lines


def words_by_feeds(text: str) -> list[str]:
    """The words of a text with `<eos>` after each of `lines_by_feeds`."""
    return [word for line in lines_by_feeds(text) for word in [*line.split(), END]]


def first_lines(words: list[str], most: int) -> list[str]:
    """The first words, `most` or as many fewer that a line ends behind them, if one ends in the last tenth of them."""
    if most >= len(words):
        return words
    ends = (count for count in range(most, most - most // WINDOW, -1) if words[count - 1] == END)
    return words[: next(ends, most)]


def first_words(words: list[str], most: int) -> list[str]:
    """The first words, wherever a line ends."""
    return words[:most]


BY_LINES = Reading(read, parts_by_lines, split_lines, split_words, first_lines)

BY_BYTES = Reading(read_bytes, parts_by_bytes, lines_by_feeds, words_by_feeds, first_words)
"""How texts were read before lines ended at anything but LF; a byte order mark was part of the text."""


class Data(Protocol):
    """Data that a run recognizes."""

    def digest(self) -> str:
        """What tells them from others."""


D = TypeVar("D", bound=Data)


def as_learnt(digest: str | None, read: Callable[[Reading], D]) -> D:
    """What is read today, or as by earlier versions where that is what has the digest; None for a run that begins.

    Raises:
        Problem: it cannot be read today, and is not what has the digest.
    """
    try:
        today = read(BY_LINES)
    except Problem:
        if digest is not None and (earlier := _of(digest, read)) is not None:
            return earlier
        raise
    if digest in (None, today.digest()):
        return today
    return _of(digest, read) or today


def _of(digest: str | None, read: Callable[[Reading], D]) -> D | None:
    """What earlier versions read, if it has the digest; they refused some texts that are read today."""
    with contextlib.suppress(Problem):
        earlier = read(BY_BYTES)
        return earlier if earlier.digest() == digest else None
    return None
