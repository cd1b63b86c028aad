"""Sentence pairs as tokens: vocabularies, what is left out, and digests."""

import contextlib
import json

import pytest

from revtune.program.data.named_sets import SPLITS, Split
from revtune.program.data.pair_sources import Lines
from revtune.program.data.pairs import lexicon, pairs, sentences, vocabularies, words_of
from revtune.program.data.subwords import Subwords
from revtune.program.data.vocabulary import END, UNKNOWN
from revtune.program.errors import Problem


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
    assert lexicon(words.to_json()).to_json() == words.to_json()
    with pytest.raises(Problem, match="the vocabulary is empty: no word of the training text comes up 4 times"):
        words_of(["a b a", "c a b"], most=2, fewest=4)


@pytest.mark.parametrize(("text", "most"), [("a a <unk> b", 9), ("a a b <eos> c", 9), ("<unk> <unk> a a", 1)])
def test_marks_in_the_text_are_the_vocabulary_s(text: str, most: int) -> None:
    for fewest in (1, 2):
        with contextlib.suppress(Problem):
            words = words_of([text], most=most, fewest=fewest)
            assert {END, UNKNOWN} <= set(words.words) and len(set(words.words)) == len(words)
            assert lexicon(words.to_json()).encode("zzz") == [words.index[UNKNOWN]]
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
    tokenizer = json.loads(Subwords.of(["ab cd"], most=60).to_json()["tokenizer"])
    tokenizer["model"]["vocab"]["d"] = 99
    for stored, told in (
        ({"unit": "word", "words": [0, END, UNKNOWN]}, "words must be a list of strings"),
        ({"unit": "byte"}, "unit must be word or subword, got 'byte'"),
        ({"unit": "subword", "tokenizer": json.dumps(tokenizer)}, "must be numbered from 0 on, got 99"),
    ):
        with pytest.raises(ValueError, match=told):
            lexicon(stored)
