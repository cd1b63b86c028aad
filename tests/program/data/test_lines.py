"""Texts as lines, words and characters: every kind of line end, marks, and where a text may be cut."""

import re
from pathlib import Path

import pytest

from revtune.program.data.lines import ENDS, cut, decode, read, split_lines
from revtune.program.errors import Problem


@pytest.mark.parametrize("end", ["\r\n", *ENDS])
def test_lines_end_at_every_kind_of_end(end: str) -> None:
    assert split_lines(f"a b{end}{end}c{end}") == ["a b", "", "c"]
    assert split_lines(f"a b{end}c") == ["a b", "c"]
    content = f"a b{end}c d{end}".encode() * 50
    place = cut(content, len(content) * 9 // 10)
    assert content[:place].endswith(end.encode()) and not content[place:].startswith((b"\r", b"\n"))


def test_a_page_break_or_a_tab_ends_no_line() -> None:
    assert split_lines("a\x0cb\x0bc\td") == ["a\x0cb\x0bc\td"]
    assert split_lines("") == []


def test_a_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffone \ufeff two".encode())
    assert read(tmp_path / "a").decode() == "one \ufeff two"


def test_a_cut_between_lines_may_lie_a_tenth_before() -> None:
    content = b"a b c\n" + b"x y " * 24  # 102 bytes
    assert cut(content, 15) == 6
    assert cut(content, 17) == 16  # the end of the line is no longer within reach, that of a word is


@pytest.mark.parametrize("space", [" ", "\t", "\u3000", "\u00a0"])
def test_a_cut_without_lines_lies_between_words(space: str) -> None:
    content = f"größe{space}".encode() * 100
    for near in range(len(content) // 2, len(content) // 2 + 12):
        place = cut(content, near)
        assert near - len(f"größe{space}".encode()) < place <= near
        assert content[:place].decode().endswith(space)


def test_a_cut_without_words_lies_between_characters() -> None:
    content = "aé語🙂".encode() * 100
    starts = {match.start() for match in re.finditer(rb"[^\x80-\xbf]", content)}
    for near in range(500, 520):
        assert cut(content, near) == max(start for start in starts if start <= near)


def test_a_cut_between_cr_and_lf_is_none() -> None:
    assert cut(b"a" * 50 + b"\r\n" + b"b" * 50, 51) == 50


def test_of_bytes_that_are_no_text_nothing_is_lost() -> None:
    content = bytes(range(128, 256)) * 8
    assert 890 <= cut(content, 900) <= 900
    assert cut(b"\x80" * 1000, 900) == 900


def test_what_is_no_utf8_is_told() -> None:
    with pytest.raises(Problem, match="a is no UTF-8 text: byte 0xe9 at 2; --unit byte reads any file"):
        decode(b"caf\xe9"[1:], "a")
    with pytest.raises(Problem, match="a is no UTF-8 text: byte 0xff at 0, it begins as UTF-16 does$"):
        decode("text".encode("utf-16"), "a", advice="")
