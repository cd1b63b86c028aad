"""Raw text as published files have it: rules one by one, and Multi30K's own files where they are."""

import gzip
import os
from pathlib import Path

import pytest

from revtune.program.data.moses import Language, TextForm, shaped

DATA = Path(os.environ.get("REVTUNE_DATA", "")) / "multi30k"


@pytest.mark.parametrize(
    ("language", "raw", "wanted"),
    [
        ("en", "Two men, one Dog.", "two men , one dog ."),
        ("en", "The man’s dogs' toys aren't 5,300 & 'new'.",
         "the man &apos;s dogs &apos; toys aren &apos;t 5,300 &amp; &apos; new &apos; ."),
        ("en", 'He says "Stop." (loudly) – go...where?!', "he says &quot; stop . &quot; ( loudly ) - go ... where ? !"),
        ("en", "A well-known man. He ran at 5 p.m. [x] a_b", "a well-known man. he ran at 5 p.m. &#91; x &#93; a _ b"),
        ("de", "„Nur heute.“", "&quot; nur heute &quot; ."),
        ("de", "Levi’s Laden mit der Nummer\u00a028.", "levi &apos; s laden mit der nummer 28."),
        ("de", "Ein Durchmesser von ca. 120\u00a0cm.", "ein durchmesser von ca. 120 cm ."),
    ],
)  # fmt: skip
def test_raw_text_is_as_that_of_multi30k(language: Language, raw: str, wanted: str) -> None:
    assert shaped(raw, "multi30k", language) == wanted


@pytest.mark.parametrize(
    ("form", "wanted"),
    [("iwslt14", "it &apos;s dr. smith . he says no. 5 ."), ("plain", "It's Dr. Smith. He says No. 5.")],
)
def test_raw_text_is_as_that_of_others(form: TextForm, wanted: str) -> None:
    """Sentences of IWSLT are tokenized before they are lower-cased, so a dot before a capital is apart."""
    assert shaped(" It's Dr. Smith. He says No. 5.\n", form, "en") == wanted


@pytest.mark.parametrize("text", ["", " \t", "\x01\x02"])
@pytest.mark.parametrize("form", ["multi30k", "iwslt14"])
def test_nothing_stays_nothing(text: str, form: TextForm) -> None:
    assert shaped(text, form, "en") == ""


@pytest.mark.skipif(not DATA.is_dir(), reason="REVTUNE_DATA has no multi30k")
@pytest.mark.parametrize("language", ["en", "de"])
def test_multi30k_s_raw_files_become_its_tokenized_ones(language: Language) -> None:
    for split in ("val", "test_2016_flickr", "train"):
        raw = gzip.decompress((DATA / f"raw/{split}.{language}.gz").read_bytes()).decode().split("\n")
        wanted = (DATA / f"tok/{split}.lc.norm.tok.{language}").read_text(encoding="utf-8").split("\n")
        assert [shaped(line, "multi30k", language) for line in raw] == [line.strip() for line in wanted]
