"""Sentence pairs: read from standard files, what cannot be used is left out or named."""

import contextlib
import gzip
import json
from pathlib import Path

import pytest

from revtune.program.data.pairs import (
    SPLITS,
    Lines,
    Split,
    Unit,
    lexicon,
    pairs,
    sentences,
    text_lines,
    texts,
    together,
    vocabularies,
    words_of,
)
from revtune.program.data.subwords import Subwords
from revtune.program.data.text import END, UNKNOWN
from revtune.program.errors import Problem
from tests.tiny_pairs import translated, write_pairs, write_raw


def test_standard_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pairs(tmp_path, train=30, held_out=5)
    found = texts("multi30k", "word", "en", "de", folder)
    assert [len(found.splits[split].source) for split in SPLITS] == [30, 5, 5]
    train = found.splits["train"]
    assert all(translated(a) == b for a, b in zip(train.source, train.target, strict=True))
    assert found.form == "multi30k" and not found.note
    monkeypatch.setenv("REVTUNE_DATA", str(folder))
    assert texts("multi30k", "word", "en", "de", None) == found


def test_raw_files_are_packed_or_not(tmp_path: Path) -> None:
    place = tmp_path / "multi30k" / "raw"
    place.mkdir(parents=True)
    for split in ("train", "val", "test_2016_flickr"):
        for language in ("en", "de"):
            (place / f"{split}.{language}.gz").write_bytes(gzip.compress(f"A {language}.\n".encode()))
    packed = texts("multi30k", "subword", "de", "en", tmp_path)
    assert packed.splits["train"] == Lines(["A de."], ["A en."]) and packed.form == "plain"
    for path in list(place.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert texts("multi30k", "subword", "de", "en", tmp_path) == packed


def test_of_files_that_are_there_in_part_the_missing_one_is_named(tmp_path: Path) -> None:
    """Other text than the user's is not learnt from in their place."""
    write_pairs(tmp_path)
    missing = tmp_path / "multi30k/tok/test_2016_flickr.lc.norm.tok.de"
    missing.unlink()
    with pytest.raises(Problem, match=f"{missing} is not there, though files beside it are"):
        texts("multi30k", "word", "en", "de", tmp_path)


def test_of_two_layouts_in_part_the_one_that_lacks_least_is_told(tmp_path: Path) -> None:
    write_raw(write_pairs(tmp_path))
    (tmp_path / "multi30k/raw/train.en.gz").touch()
    missing = tmp_path / "multi30k/raw/test_2016_flickr.de"
    missing.unlink()
    with pytest.raises(Problem, match=f"{missing} is not there, though files beside it are"):
        texts("multi30k", "subword", "en", "de", tmp_path)


def test_a_sample_does_not_stand_in_for_what_is_there_in_part(tmp_path: Path) -> None:
    sample = "train-sample", "valid", "test"
    for folder, splits in (("iwslt14-de-en-small", sample), ("iwslt14.tokenized.de-en", SPLITS)):
        (tmp_path / folder).mkdir()
        for path in (tmp_path / folder / f"{split}.{side}" for split in splits for side in ("en", "de")):
            path.write_text("a .\n")
    missing = tmp_path / "iwslt14.tokenized.de-en/valid.de"
    missing.unlink()
    with pytest.raises(Problem, match=f"{missing} is not there, though files beside it are"):
        texts("iwslt14", "word", "de", "en", tmp_path)


@pytest.mark.parametrize("unit", ["word", "subword"])
def test_a_sample_that_stands_in_is_told(unit: Unit, tmp_path: Path) -> None:
    names = {"iwslt14-de-en-small": ("train-sample", "valid", "test"), "iwslt14.tokenized.de-en": SPLITS}
    for number, (folder, splits) in enumerate(names.items()):
        (tmp_path / folder).mkdir()
        for split in splits:
            for language in ("en", "de"):
                (tmp_path / folder / f"{split}.{language}").write_text("a &apos;s .\n")
        found = texts("iwslt14", unit, "de", "en", tmp_path)
        assert found.form == "iwslt14" and bool(found.note) == (number == 0)
        assert number or "iwslt14-de-en-small, 1 pairs where IWSLT 2014 has about 160,000" in found.note


@pytest.mark.parametrize(("unit", "form", "text"), [
    ("word", "multi30k", "two dogs &amp; the man &apos;s ball ."), ("subword", "plain", "Two dogs & the man’s ball."),
])  # fmt: skip
def test_text_of_the_hub_is_shaped_like_the_files(
    unit: Unit, form: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"en": "Two dogs & the man’s ball. ", "de": "Zwei."}]
    splits = dict.fromkeys(("train", "validation", "test"), rows)
    monkeypatch.setattr("revtune.program.data.pairs.ask_hub", lambda *_: splits)
    monkeypatch.delenv("REVTUNE_DATA", raising=False)
    found = texts("multi30k", unit, "en", "de", None)
    assert found.splits["test"].source == [text] and found.form == form


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone two\r\nthree\r\n")
    assert text_lines(tmp_path / "a") == ["one two", "three"]


def test_sides_of_different_length_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one\ntwo\n")
    (tmp_path / "b").write_text("eins\n")
    with pytest.raises(Problem, match="must have as many lines, each other's translations, got 2 and 1"):
        together(tmp_path / "a", tmp_path / "b")


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff\xfe")
    (tmp_path / "b.gz").write_bytes(b"no gzip")
    packed = bytearray(gzip.compress(bytes(range(32, 127)) * 9))
    packed[14:18] = b"\xff" * 4
    (tmp_path / "d.gz").write_bytes(packed)
    damaged = "damaged or no gzip file"
    for name, told in (("a", "no UTF-8 text"), ("b.gz", damaged), ("c", "cannot read"), ("d.gz", damaged)):
        with pytest.raises(Problem, match=told):
            text_lines(tmp_path / name)


def test_empty_and_long_pairs_are_left_out_and_counted() -> None:
    lines = Lines(["a b", "", "a", "a a a a", "b"], ["x", "x", "", "x", "x x x x"])
    source, target = (words_of(side, most=9, fewest=1) for side in (lines.source, lines.target))
    found = sentences(lines, source, target, 3)
    assert (len(found.pairs), found.empty, found.long) == (1, 2, 2)
    assert found.lines == Lines(["a b"], ["x"])
    assert found.pairs[0][1] == [target.index["x"], target.start]
    everything = sentences(lines, source, target, None)
    assert len(everything.pairs) == 5 and everything.pairs[1][0] == []


def test_a_vocabulary_holds_the_frequent_words_and_both_marks() -> None:
    words = words_of(["a b a", "c a b"], most=2, fewest=2)
    assert words.words == ["a", "b", END, UNKNOWN]
    assert lexicon(words.facts()).facts() == words.facts()
    with pytest.raises(Problem, match="the vocabulary is empty: no word of the training text comes up 4 times"):
        words_of(["a b a", "c a b"], most=2, fewest=4)


@pytest.mark.parametrize(("text", "most"), [("a a <unk> b", 9), ("a a b <eos> c", 9), ("<unk> <unk> a a", 1)])
def test_marks_in_the_text_are_the_vocabulary_s(text: str, most: int) -> None:
    for fewest in (1, 2):
        with contextlib.suppress(Problem):
            words = words_of([text], most=most, fewest=fewest)
            assert {END, UNKNOWN} <= set(words.words) and len(set(words.words)) == len(words)
            assert lexicon(words.facts()).encode("zzz") == [words.index[UNKNOWN]]
    with pytest.raises(Problem, match="the vocabulary is empty"):
        words_of([f"{END} {UNKNOWN}"], most=9, fewest=1)


def every(source: str, target: str) -> dict[Split, Lines]:
    """The same sentence in all splits."""
    return {split: Lines([source], [target]) for split in SPLITS}


def test_nothing_left_to_learn_is_named() -> None:
    lines = every("a a a", "b")
    with pytest.raises(Problem, match="no sentence pair of the train text can be used: 0 have an empty side, 1 are"):
        pairs(lines, vocabularies(lines["train"], "word", most=9, fewest=1), longest=2)


def test_the_digest_tells_other_data() -> None:
    def digest(source: str, target: str) -> str:
        lines = every(source, target)
        return pairs(lines, vocabularies(lines["train"], "word", most=9, fewest=1), longest=9).digest()

    assert digest("a b", "b") == digest("a b", "b") != digest("b", "a b")


def test_the_digest_tells_other_unknown_words_of_the_test() -> None:
    """BLEU is of the words as they are."""
    lines = every("a b", "b")
    known = vocabularies(lines["train"], "word", most=9, fewest=1)
    found = {pairs({**lines, "test": Lines(["a b"], [word])}, known, longest=9).test_digest() for word in ("c", "d")}
    assert len(found) == 2


def test_an_empty_vocabulary_s_side_is_named() -> None:
    for side, lines in (("source", Lines(["a"], ["b b"])), ("target", Lines(["a a"], ["b"]))):
        with pytest.raises(Problem, match=f"{side} language: the vocabulary is empty"):
            vocabularies(lines, "word", most=9, fewest=2)


def test_damaged_vocabularies_are_none() -> None:
    tokenizer = json.loads(Subwords.of(["ab cd"], most=60).facts()["tokenizer"])
    tokenizer["model"]["vocab"]["d"] = 99
    for facts, told in (
        ({"unit": "word", "words": [0, END, UNKNOWN]}, "words must be a list of strings"),
        ({"unit": "byte"}, "unit must be word or subword, got 'byte'"),
        ({"unit": "subword", "tokenizer": json.dumps(tokenizer)}, "must be numbered from 0 on, got 99"),
    ):
        with pytest.raises(ValueError, match=told):
            lexicon(facts)


def test_sub_words_go_there_and_back() -> None:
    text = ["Ein Mann fährt Fahrrad.", "Eine Frau fährt Auto.", "Ein Hund läuft."]
    found = Subwords.of(text, most=60)
    assert len(found) <= 60
    assert [found.text(found.encode(line)) for line in text] == [line.lower() for line in text]
    again = lexicon(found.facts())
    assert again.encode(text[0]) == found.encode(text[0]) and again.start == found.start
    assert found.unknown("Ein 中 Mann") == ["中"]
    assert found.unknown(text[1]) == []


def test_sub_words_of_nothing_are_refused() -> None:
    with pytest.raises(Problem, match="the vocabulary is empty"):
        Subwords.of(["", ""], most=60)
    with pytest.raises(ValueError, match="no tokenizer"):
        Subwords("{}")


def test_fewer_sub_words_than_characters_are_refused() -> None:
    told = "--vocabulary must be at least 7, the characters of the training text and 2 marks, got 5"
    with pytest.raises(Problem, match=told):
        Subwords.of(["ab ab", "cd"], most=5)
    assert len(Subwords.of(["ab ab", "cd"], most=7)) == 7


def test_sub_words_are_joined_that_come_up_together_often_enough() -> None:
    found = [Subwords.of(["ab ab cd"], most=60, fewest=fewest).encode("ab cd") for fewest in (1, 2, 3)]
    assert [len(tokens) for tokens in found] == [2, 4, 6]
