"""Where sentence pairs come from: standard files are found, and what is missing or damaged is named."""

import gzip
from pathlib import Path

import pytest

from revtune.program.data.named_sets import SPLITS
from revtune.program.data.pair_sources import Lines, PairUnit, text_lines, texts, together
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
def test_a_sample_that_stands_in_is_told(unit: PairUnit, tmp_path: Path) -> None:
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
    unit: PairUnit, form: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"en": "Two dogs & the man’s ball. ", "de": "Zwei."}]
    splits = dict.fromkeys(("train", "validation", "test"), rows)
    monkeypatch.setattr("revtune.program.data.pair_sources.ask_hub", lambda *_: splits)
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


@pytest.mark.parametrize("end", ["\r", "\x85", "\u2028", "\u2029"])
def test_a_line_that_is_two_in_one_file_alone_is_named(end: str, tmp_path: Path) -> None:
    """Here both files have three lines, but the second is no translation of the second."""
    (tmp_path / "a").write_text(f"one{end}two\nthree\n", encoding="utf-8", newline="")
    (tmp_path / "b").write_text(f"eins\nzwei{end}drei\n", encoding="utf-8", newline="")
    told = rf"a: U\+{ord(end):04X} ends a line inside line 1, where .*b has one line; they must have as many"
    with pytest.raises(Problem, match=told):
        together(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b").write_text(f"eins{end}zwei\ndrei", encoding="utf-8", newline="")
    assert together(tmp_path / "a", tmp_path / "b") == Lines(["one", "two", "three"], ["eins", "zwei", "drei"])


def test_files_may_end_their_lines_each_in_its_way(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\rtwo\rthree\r")
    for other in (b"\xef\xbb\xbfeins\r\nzwei\r\ndrei\r\n", b"eins\nzwei\ndrei", b"eins\rzwei\rdrei"):
        (tmp_path / "b").write_bytes(other)
        assert together(tmp_path / "a", tmp_path / "b") == Lines(["one", "two", "three"], ["eins", "zwei", "drei"])


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
