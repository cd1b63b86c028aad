"""Tokens, vocabularies, streams, and the texts they come from."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from revtune.program.data import text_sources as sources
from revtune.program.data.text import (
    SPLITS,
    Bytes,
    Words,
    byte_corpus,
    segment,
    split_words,
    streams,
    vocabulary,
    word_corpus,
)
from revtune.program.data.text_sources import Source, Text
from revtune.program.errors import Problem


def text_of(tokens: Sequence[int], words: Words | Bytes) -> str:
    return "".join(words.pieces(tokens))


def test_lines_end_in_eos_also_empty_ones() -> None:
    assert split_words(" a b \n\nc\n") == ["a", "b", "<eos>", "<eos>", "c", "<eos>"]
    assert split_words("a") == ["a", "<eos>"]


def test_words_are_the_most_frequent_and_the_marks() -> None:
    words = Words.of("b a b c a b <eos>".split(), 2)
    assert words.words == ["b", "a", "<eos>", "<unk>"]
    assert words.encode("a x\nb") == [1, 3, 2, 0]
    assert words.unknown("a x b y") == ["x", "y"]
    assert text_of([1, 3, 2, 0], words) == "a <unk> \nb "


def test_a_word_corpus_takes_its_vocabulary_from_training_text() -> None:
    corpus = word_corpus(["a", "<eos>"], ["b", "a"], ["<eos>"], most=10)
    assert corpus.valid.tolist() == [2, 0]
    assert len(corpus.vocabulary) == 3


@pytest.mark.parametrize("vocab", [Bytes(), Words(["a", "<eos>", "<unk>"])])
def test_vocabularies_come_back_from_their_facts(vocab: Bytes | Words) -> None:
    again = vocabulary(vocab.facts())
    assert type(again) is type(vocab)
    assert again.facts() == vocab.facts()


def test_bytes_decode_across_tokens_and_replace_what_is_no_utf8() -> None:
    assert text_of("äö".encode(), Bytes()) == "äö"
    assert text_of(b"a\xffb\xc3", Bytes()) == "a\ufffdb\ufffd"


def test_streams_are_columns_of_consecutive_tokens() -> None:
    rows = streams(torch.arange(11), 3, name="training")
    assert rows.tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    inputs, targets = segment(rows, 1, 5)
    assert inputs.tolist() == [[1, 4, 7]]
    assert targets.tolist() == [[2, 5, 8]]


def test_too_few_tokens_for_the_streams_are_refused() -> None:
    with pytest.raises(Problem, match="the training text has 5 tokens, too few for 3 streams"):
        streams(torch.arange(5), 3, name="training")


def test_a_digest_tells_corpora_apart() -> None:
    digests = {
        byte_corpus(*parts).digest() for parts in [(b"ab", b"c", b"d"), (b"a", b"bc", b"d"), (b"ab", b"c", b"e")]
    }
    assert len(digests) == 3


def test_stdlib_is_python_source_in_three_disjoint_parts() -> None:
    train, valid, test = sources.stdlib()
    assert (train, valid, test) == sources.stdlib()
    assert len(train) > 5 * len(valid) > 0
    assert len(train) > 5 * len(test) > 0
    assert b"def " in valid


def test_stdlib_skips_tests_and_reads_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FEWEST_BYTES", 0)
    (tmp_path / "test").mkdir()
    for name in ("b.py", "a.py", "c.txt", "test/t.py"):
        (tmp_path / name).write_text(name)
    assert b"".join(sources.stdlib(tmp_path)) == b"a.pyb.py"


def test_a_folder_without_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="too little Python source"):
        sources.stdlib(tmp_path)


def test_a_file_is_cut_after_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"0123456789abcde\n" * 200)
    parts = sources.file_parts(path)
    assert b"".join(parts) == path.read_bytes()
    assert all(part.endswith(b"e\n") for part in parts)
    assert [len(part) for part in parts] == [2880, 160, 160]


def test_a_file_without_lines_is_cut_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a" * 2000)
    assert [len(part) for part in sources.file_parts(path)] == [1800, 100, 100]


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
            sources.load(Text(source="file", file=path))


def test_words_of_no_utf8_are_refused_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a b\n" * 300 + b"\xff" * 9)
    with pytest.raises(Problem, match=r"text is no UTF-8 text: byte 0xff at \d+; --unit byte reads any file"):
        sources.load(Text(source="file", file=path, unit="word"))
    assert len(sources.load(Text(source="file", file=path)).train) > 1000


def ptb_like(folder: Path) -> Path:
    (folder / "ptb").mkdir()
    for split in SPLITS:
        (folder / f"ptb/ptb.{split}.txt").write_text(f" the {split} <unk> \n the N \n")
    return folder


@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_data_set_by_name_comes_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    folder = ptb_like(tmp_path)
    monkeypatch.setenv("REVTUNE_DATA", str(folder if by == "environment" else tmp_path / "nowhere"))
    corpus = sources.load(Text(source="ptb", unit="word", data=folder if by == "option" else None))
    assert isinstance(corpus.vocabulary, Words)
    assert corpus.vocabulary.words == ["the", "<eos>", "train", "<unk>", "N"]
    assert text_of(corpus.test.tolist(), corpus.vocabulary) == "the <unk> <unk> \nthe N \n"


def test_without_a_folder_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REVTUNE_DATA", raising=False)
    hub = type(sys)("datasets")
    rows = {split: {"text": ["", " = a b = \n"]} for split in ("train", "validation", "test")}
    monkeypatch.setattr(hub, "load_dataset", lambda *_, revision: rows, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert sources.named("wikitext2", None) == (b"\n = a b = \n",) * 3


def test_a_data_set_that_is_nowhere_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, revision: str) -> None:
        raise ConnectionError("the hub is out of reach\nand more")

    hub = type(sys)("datasets")
    monkeypatch.setattr(hub, "load_dataset", refuse, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    with pytest.raises(Problem) as caught:
        sources.load(Text(source="ptb", unit="word", data=tmp_path))
    looked = f"ptb/ptb.train.txt is not in {tmp_path}"
    assert str(caught.value) == f"ptb was not found: {looked}, and the hub did not give it (the hub is out of reach)"


@pytest.mark.skipif("REVTUNE_DATA" not in os.environ, reason="REVTUNE_DATA names no folder with data sets")
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("ptb", (10_000, 929_589, 73_760, 82_430)), ("wikitext2", (33_278, 2_088_628, 217_646, 245_569))],
)
def test_standard_data_sets_have_their_standard_sizes(name: Source, sizes: tuple[int, ...]) -> None:
    corpus = sources.load(Text(source=name, unit="word"))
    assert (len(corpus.vocabulary), len(corpus.train), len(corpus.valid), len(corpus.test)) == sizes
