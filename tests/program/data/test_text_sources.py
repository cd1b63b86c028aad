"""The texts of the standard library, of files, and of data sets by name."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from revtune.program.data import readings, text_sources
from revtune.program.data.named_sets import SPLITS
from revtune.program.data.readings import BY_BYTES
from revtune.program.data.text_sources import Text, TextSource, load
from revtune.program.data.vocabulary import TextUnit, Words
from revtune.program.errors import Problem
from tests.tiny_words import write_words


def test_stdlib_is_python_source_in_three_disjoint_parts() -> None:
    train, valid, test = text_sources.stdlib()
    assert (train, valid, test) == text_sources.stdlib()
    assert len(train) > 5 * len(valid) > 0
    assert len(train) > 5 * len(test) > 0
    assert b"def " in valid


def test_stdlib_skips_tests_and_reads_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_sources, "FEWEST_BYTES", 0)
    (tmp_path / "test").mkdir()
    for name in ("b.py", "a.py", "c.txt", "test/t.py"):
        (tmp_path / name).write_text(name)
    assert b"".join(text_sources.stdlib(tmp_path)) == b"a.pyb.py"


def test_a_folder_without_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="too little Python source"):
        text_sources.stdlib(tmp_path)


def test_a_file_is_cut_after_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"0123456789abcde\n" * 200)
    parts = text_sources.file_parts(path)
    assert b"".join(parts) == path.read_bytes()
    assert all(part.endswith(b"e\n") for part in parts)
    assert [len(part) for part in parts] == [2880, 160, 160]


def test_a_file_without_lines_is_cut_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a" * 2000)
    assert [len(part) for part in text_sources.file_parts(path)] == [1800, 100, 100]


def test_wrong_files_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for path, sentence in (
        (empty, "empty is too short to learn from: 0 bytes"),
        (tmp_path, "cannot read .*: Is a directory"),
        (tmp_path / "missing", "cannot read .*missing: No such file"),
        (None, "give it by --file"),
    ):
        with pytest.raises(Problem, match=sentence):
            text_sources.load(Text(source="file", file=path))


def test_words_of_no_utf8_are_refused_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a b\n" * 300 + b"\xff" * 9)
    with pytest.raises(Problem, match=r"text is no UTF-8 text: byte 0xff at 1200; --unit byte reads any file"):
        text_sources.load(Text(source="file", file=path, unit="word"))
    assert len(text_sources.load(Text(source="file", file=path)).train) > 1000


def test_valid_text_of_one_line_is_read_as_words(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("\ufeff" + "é " * 705, encoding="utf-8")
    corpus = text_sources.load(Text(source="file", file=path, unit="word"))
    assert isinstance(corpus.vocabulary, Words)
    assert corpus.vocabulary.words == ["é", "<eos>", "<unk>"]


def test_bytes_are_the_file_s_own_but_for_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbf" + b"alpha\r\nbeta\r" * 100)
    corpus = text_sources.load(Text(source="file", file=path))
    assert bytes(torch.cat([corpus.train, corpus.valid, corpus.test]).tolist()) == path.read_bytes()[3:]


@pytest.mark.parametrize("unit", ["byte", "word"])
@pytest.mark.parametrize("content", [b"alpha beta " * 201, b"\xef\xbb\xbf" + b"a b\n" * 300, b"a\rb\n" * 300])
def test_a_text_that_was_learnt_as_earlier_versions_read_it_is_read_so(
    content: bytes, unit: TextUnit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    text = Text(source="file", file=path, unit=unit)
    now = text_sources.load(text).digest()
    with monkeypatch.context() as patch:
        patch.setattr(readings, "BY_LINES", BY_BYTES)
        then = text_sources.load(text).digest()
    assert (now != then) or (unit, content[:2]) == ("byte", b"a\r")
    assert text_sources.load(text, then).digest() == then
    assert text_sources.load(text, now).digest() == text_sources.load(text, "another").digest() == now


def ptb_like(folder: Path) -> Path:
    (folder / "ptb").mkdir()
    for split in SPLITS:
        (folder / f"ptb/ptb.{split}.txt").write_text(f" the {split} <unk> \n the N \n")
    return folder


@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_data_set_by_name_comes_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    folder = ptb_like(tmp_path)
    monkeypatch.setenv("REVTUNE_DATA", str(folder if by == "environment" else tmp_path / "nowhere"))
    corpus = text_sources.load(Text(source="ptb", unit="word", data=folder if by == "option" else None))
    assert isinstance(corpus.vocabulary, Words)
    assert corpus.vocabulary.words == ["the", "<eos>", "train", "<unk>", "N"]
    assert "".join(corpus.vocabulary.pieces(corpus.test.tolist())) == "the <unk> <unk> \nthe N \n"


@pytest.mark.parametrize("split", SPLITS)
def test_a_folder_that_has_two_of_three_texts_is_told_and_the_hub_is_not_asked(tmp_path: Path, split: str) -> None:
    lacking = ptb_like(tmp_path) / f"ptb/ptb.{split}.txt"
    lacking.unlink()
    with pytest.raises(Problem) as caught:
        text_sources.named("ptb", tmp_path)
    assert str(caught.value) == f"{lacking} is not there, though files beside it are"


def test_without_a_folder_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REVTUNE_DATA", raising=False)
    hub = type(sys)("datasets")
    rows = {split: {"text": ["", " = a b = \n"]} for split in ("train", "validation", "test")}
    monkeypatch.setattr(hub, "load_dataset", lambda *_, revision: rows, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert text_sources.named("wikitext2", None) == (b"\n = a b = \n",) * 3


def test_a_data_set_that_is_nowhere_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, revision: str) -> None:
        raise ConnectionError("the hub is out of reach\nand more")

    hub = type(sys)("datasets")
    monkeypatch.setattr(hub, "load_dataset", refuse, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    with pytest.raises(Problem) as caught:
        text_sources.load(Text(source="ptb", unit="word", data=tmp_path))
    looked = f"ptb/ptb.train.txt is not in {tmp_path}"
    assert str(caught.value) == f"ptb was not found: {looked}, and the hub did not give it (the hub is out of reach)"


@pytest.mark.skipif("REVTUNE_DATA" not in os.environ, reason="REVTUNE_DATA names no folder with data sets")
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("ptb", (10_000, 929_589, 73_760, 82_430)), ("wikitext2", (33_278, 2_088_628, 217_646, 245_569))],
)
def test_standard_data_sets_have_their_standard_sizes(name: TextSource, sizes: tuple[int, ...]) -> None:
    corpus = text_sources.load(Text(source=name, unit="word"))
    assert (len(corpus.vocabulary), len(corpus.train), len(corpus.valid), len(corpus.test)) == sizes


def test_a_part_of_a_text_is_its_first_words_and_a_fifth_as_many_held_out(tmp_path: Path) -> None:
    write_words(tmp_path)
    whole, part = (load(Text(source="ptb", unit="word", data=tmp_path, words=words)) for words in (None, 200))
    assert [len(each) for each in (part.train, part.valid, part.test)] == [198, 40, 110]  # 198 are whole lines
    words: Any = whole.vocabulary
    known: Any = part.vocabulary
    assert [known.words[one] for one in part.train] == [words.words[one] for one in whole.train[:198]]
    with pytest.raises(Problem, match="--words must be at most 440 for ptb, got 441"):
        load(Text(source="ptb", unit="word", data=tmp_path, words=441))
