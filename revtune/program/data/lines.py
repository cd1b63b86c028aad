"""Text files as lines, words and characters: one reader for texts and sentence pairs, and where a text may be cut.

A line ends at CR LF, LF, CR, U+0085 (next line), U+2028 (line separator) or U+2029 (paragraph separator). A text is
UTF-8; a byte order mark before it is no part of it.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from pathlib import Path

from revtune.program.errors import Problem
from revtune.program.files import read_bytes

MARK = "\ufeff"
"""A byte order mark, which some editors put before a text."""

ENDS = ("\n", "\r", "\x85", "\u2028", "\u2029")
"""What ends a line, but for CR LF, which is one end and not two."""

WINDOW = 10
"""A cut is looked for in the last tenth of a text before the place where it is wanted."""

LINE_END = re.compile("\r\n|[" + "".join(ENDS) + "]")

_WORDS = re.compile(r".*\s", re.DOTALL)


def read(path: Path) -> bytes:
    """A text's bytes, without its byte order mark.

    Raises:
        Problem: the file cannot be read or is no regular file.
    """
    return read_bytes(path).removeprefix(codecs.BOM_UTF8)


def read_packed(path: Path) -> bytes:
    """A text's bytes, without its byte order mark, from a file that gzip has packed if its name ends in .gz.

    Raises:
        Problem: as `read`, or the file is damaged.
    """
    if path.suffix != ".gz":
        return read(path)
    try:
        return gzip.decompress(read_bytes(path)).removeprefix(codecs.BOM_UTF8)
    except (OSError, EOFError, zlib.error) as error:
        raise Problem(f"{path} is damaged or no gzip file: {error}") from error


def decode(content: bytes, name: str, *, advice: str = "; --unit byte reads any file") -> str:
    """Bytes as UTF-8 text.

    Raises:
        Problem: they are none; it names the first wrong byte and ends in the advice.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"byte {error.object[error.start]:#04x} at {error.start}"
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            where += ", it begins as UTF-16 does"
        raise Problem(f"{name} is no UTF-8 text: {where}{advice}") from error


def split_lines(text: str) -> list[str]:
    """The lines of a text without their ends; what follows the last end is a line unless it is empty.

    Example:
        >>> split_lines("a\\r\\nb\\r\\u2028c")
        ['a', 'b', '', 'c']
    """
    lines = LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def cut(content: bytes, near: int) -> int:
    """The last place up to `near` that lies between lines, else between words, else between characters.

    Lines and words are looked for in the last tenth of the content before `near`, `WINDOW`. Bytes that are no UTF-8
    are nothing to cut between.
    """
    first, last = (_between_characters(content, place) for place in (max(0, near - len(content) // WINDOW), near))
    ends = [end.encode() for end in ENDS]
    found = [content.rfind(end, first, last) + len(end) for end in ends if content.rfind(end, first, last) >= 0]
    if found:
        return max(found)
    words = _WORDS.match(content[first:last].decode("utf-8", "surrogateescape"))
    return first + len(words[0].encode("utf-8", "surrogateescape")) if words else last


def _between_characters(content: bytes, place: int) -> int:
    """The last place up to this one that is not inside a character, or between CR and LF."""
    for back in range(min(place, 3) + 1):  # a character has at most four bytes
        if place - back == len(content) or content[place - back] & 0xC0 != 0x80:
            place -= back
            break
    return place - 1 if content[place - 1 : place + 1] == b"\r\n" else place
