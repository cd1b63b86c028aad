"""Sub-words: learnt from a text, there and back."""

import pytest

from revtune.program.data.pairs import lexicon
from revtune.program.data.subwords import Subwords
from revtune.program.errors import Problem


def test_sub_words_go_there_and_back() -> None:
    text = ["Ein Mann fährt Fahrrad.", "Eine Frau fährt Auto.", "Ein Hund läuft."]
    found = Subwords.of(text, most=60)
    assert len(found) <= 60
    assert [found.text(found.encode(line)) for line in text] == [line.lower() for line in text]
    again = lexicon(found.to_json())
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
