"""Sentence pairs: read from standard files, what cannot be used is left out or named."""

import gzip
from pathlib import Path

import pytest

from revtune.data import END, UNKNOWN
from revtune.pairs import Lines, lexicon, lines_of, moses, pairs, sentences, text_lines, together, words_of
from revtune.problem import Problem
from revtune.subwords import Subwords
from tests.tiny_pairs import translated, write_pairs


def test_standard_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pairs(tmp_path, train=30, held_out=5)
    found = lines_of("multi30k", "word", "en", "de", folder)
    assert [len(found[split].source) for split in ("train", "valid", "test")] == [30, 5, 5]
    assert all(translated(a) == b for a, b in zip(found["train"].source, found["train"].target, strict=True))
    monkeypatch.setenv("REVTUNE_DATA", str(folder))
    assert lines_of("multi30k", "word", "en", "de", None) == found


def test_raw_files_are_packed_or_not(tmp_path: Path) -> None:
    place = tmp_path / "multi30k" / "raw"
    place.mkdir(parents=True)
    for split in ("train", "val", "test_2016_flickr"):
        for language in ("en", "de"):
            (place / f"{split}.{language}.gz").write_bytes(gzip.compress(f"A {language}.\n".encode()))
    packed = lines_of("multi30k", "subword", "de", "en", tmp_path)
    assert packed["train"] == Lines(["A de."], ["A en."])
    for path in list(place.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert lines_of("multi30k", "subword", "de", "en", tmp_path) == packed


def test_sides_of_different_length_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one\ntwo\n")
    (tmp_path / "b").write_text("eins\n")
    with pytest.raises(Problem, match="must have as many lines, each other's translations, got 2 and 1"):
        together(tmp_path / "a", tmp_path / "b")


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff\xfe")
    (tmp_path / "b.gz").write_bytes(b"no gzip")
    for name, told in (("a", "no UTF-8 text"), ("b.gz", "damaged or no gzip file"), ("c", "cannot read")):
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


def test_nothing_left_to_learn_is_named() -> None:
    lines = {split: Lines(["a a a"], ["b"]) for split in ("train", "valid", "test")}
    with pytest.raises(Problem, match="no sentence pair of the train text can be used: 0 have an empty side, 1 are"):
        pairs(lines, unit="word", most=9, fewest=1, longest=2)  # type: ignore[arg-type]


def test_the_digest_tells_other_data() -> None:
    def digest(*words: str) -> str:
        lines = {split: Lines(list(words), list(words)) for split in ("train", "valid", "test")}
        return pairs(lines, unit="word", most=9, fewest=1, longest=9).digest()  # type: ignore[arg-type]

    assert digest("a b", "b") == digest("a b", "b") != digest("b", "a b")


def test_sub_words_go_there_and_back() -> None:
    text = ["Ein Mann fährt Fahrrad.", "Eine Frau fährt Auto.", "Ein Hund läuft."]
    found = Subwords.of(text, 60)
    assert len(found) <= 60
    assert [found.text(found.encode(line)) for line in text] == [line.lower() for line in text]
    again = lexicon(found.facts())
    assert again.encode(text[0]) == found.encode(text[0]) and again.start == found.start
    assert found.unknown("Ein 中 Mann") == ["中"]
    assert found.unknown(text[1]) == []


def test_sub_words_of_nothing_are_refused() -> None:
    with pytest.raises(Problem, match="the vocabulary is empty"):
        Subwords.of(["", ""], 60)
    with pytest.raises(ValueError, match="no tokenizer"):
        Subwords("{}")


def test_raw_text_becomes_words() -> None:
    assert moses("Two men, one Dog.") == "two men , one dog ."
