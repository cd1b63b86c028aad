"""Ways to read a text: whole lines in all parts, and what earlier versions made of it."""

import itertools
import random

import pytest

from revtune.program.data.lines import ENDS
from revtune.program.data.readings import (
    BY_BYTES,
    BY_LINES,
    as_learnt,
    first_lines,
    parts_by_bytes,
    parts_by_lines,
    words_by_feeds,
)
from revtune.program.errors import Problem


@pytest.mark.parametrize("end", ["\r\n", *ENDS])
def test_parts_are_whole_lines(end: str) -> None:
    text = "".join(f"{'alpha ' * (number % 7)}beta{end}" for number in range(200))
    parts = parts_by_lines(text.encode())
    assert b"".join(parts) == text.encode()
    assert all(part.decode().endswith(end) for part in parts)
    words = [BY_LINES.words(part.decode()) for part in parts]
    assert list(itertools.chain(*words)) == BY_LINES.words(text)
    assert sum(part.count("<eos>") for part in words) == 200


@pytest.mark.parametrize("lines", [10, 11, 12, 15, 20, 30])
def test_few_lines_stay_whole(lines: int) -> None:
    content = (b"word " * 40 + b"\n") * lines
    parts = parts_by_lines(content)
    assert all(part.endswith(b"\n") for part in parts)
    train, valid, test = (len(part) / len(content) for part in parts)
    assert train >= 0.73 and 0.02 <= valid <= 0.15 and 0.05 <= test <= 0.15


@pytest.mark.parametrize("text", ["é " * 705, "a" + "é " * 700, "alpha beta " * 201, "語" * 900, "a" + "語" * 900])
def test_one_line_is_cut_between_words_or_characters(text: str) -> None:
    parts = [part.decode() for part in parts_by_lines(text.encode())]
    assert "".join(parts) == text and all(parts)
    assert [word for part in parts for word in part.split()] == text.split() or " " not in text


def test_plain_lines_are_cut_as_ever() -> None:
    draw = random.Random(1)
    for _ in range(20):
        content = b"".join(b"w" * draw.randrange(60) + b"\n" for _ in range(draw.randrange(200, 600)))
        assert len(content) // 50 > 60, "shorter lines than the 2% that were looked through"
        assert parts_by_lines(content) == parts_by_bytes(content)
        assert BY_LINES.words(content.decode()) == words_by_feeds(content.decode())


def test_earlier_versions_cut_bytes() -> None:
    parts = BY_BYTES.parts(b"alpha beta " * 201)
    assert (parts[0][-3:], parts[1][:3]) == (b"bet", b"a a")
    assert BY_BYTES.words("a\rb\n") == ["a", "b", "<eos>"]


def test_the_first_words_end_with_a_line_where_one_does() -> None:
    words = BY_LINES.words("a b c d e\n" * 20)
    assert [len(first_lines(words, most)) for most in (50, 60, 61, 65, 66, 120, 999)] == [48, 60, 60, 60, 66, 120, 120]
    assert len(first_lines(words, 5)) == 5 and len(first_lines(["a"] * 90, 50)) == 50
    assert all(BY_BYTES.first(words, most) == words[:most] for most in range(130))


class Read:
    """Data that remember how they were read."""

    def __init__(self, name: str) -> None:
        self.name = name

    def digest(self) -> str:
        return self.name


def test_data_are_read_as_they_were_learnt() -> None:
    names = {id(BY_LINES): "today", id(BY_BYTES): "earlier"}
    for digest, name in ((None, "today"), ("today", "today"), ("earlier", "earlier"), ("other", "today")):
        assert as_learnt(digest, lambda reading: Read(names[id(reading)])).name == name

    def refused(reading: object) -> Read:
        if reading is BY_BYTES:
            raise Problem("too short")
        return Read("today")

    assert as_learnt("other", refused).name == "today"

    def refused_today(reading: object) -> Read:
        if reading is BY_LINES:
            raise Problem("breaks inside a line")
        return Read("earlier")

    assert as_learnt("earlier", refused_today).name == "earlier"
    for digest in (None, "other"):
        with pytest.raises(Problem, match="breaks inside"):
            as_learnt(digest, refused_today)
