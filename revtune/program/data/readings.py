"""How a text becomes three parts and words: by its lines, and as earlier versions did, for runs that learnt so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from revtune.program.data.lines import cut, read
from revtune.program.data.vocabulary import END, split_words
from revtune.program.files import read_bytes

Parts = tuple[bytes, bytes, bytes]
"""The texts to train, validate and test on."""


class Reading(NamedTuple):
    """A way to read texts.

    Attributes:
        read: a file's bytes.
        parts: a text in three, for training, validation and test.
        words: a text's words with `<eos>` after each line.
    """

    read: Callable[[Path], bytes]
    parts: Callable[[bytes], Parts]
    words: Callable[[str], list[str]]


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


def words_by_feeds(text: str) -> list[str]:
    """The words of a text with `<eos>` after each of its lines, which end at LF alone."""
    lines = text.split("\n")
    if lines[-1] == "" and len(lines) > 1:
        lines.pop()
    return [word for line in lines for word in [*line.split(), END]]


BY_LINES = Reading(read, parts_by_lines, split_words)

BY_BYTES = Reading(read_bytes, parts_by_bytes, words_by_feeds)
"""How texts were read before lines ended at anything but LF; a byte order mark was part of the text."""
