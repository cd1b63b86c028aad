"""Vocabularies: words and bytes as numbers, and back."""

from collections.abc import Sequence

import pytest

from revtune.program.data.vocabulary import Bytes, Words, split_words, vocabulary


def text_of(tokens: Sequence[int], words: Words | Bytes) -> str:
    return "".join(words.pieces(tokens))


def test_lines_end_in_eos_also_empty_ones() -> None:
    assert split_words(" a b \n\nc\n") == ["a", "b", "<eos>", "<eos>", "c", "<eos>"]
    assert split_words("a") == ["a", "<eos>"]
    assert split_words("a b\rc\r\n\u2028d") == ["a", "b", "<eos>", "c", "<eos>", "<eos>", "d", "<eos>"]
    assert split_words("") == []


def test_words_are_the_most_frequent_and_the_marks() -> None:
    words = Words.of("b a b c a b <eos>".split(), 2)
    assert words.words == ["b", "a", "<eos>", "<unk>"]
    assert words.encode("a x\nb") == [1, 3, 2, 0]
    assert words.unknown("a x b y") == ["x", "y"]
    assert text_of([1, 3, 2, 0], words) == "a <unk> \nb "


@pytest.mark.parametrize("vocab", [Bytes(), Words(["a", "<eos>", "<unk>"])])
def test_vocabularies_come_back_from_their_json(vocab: Bytes | Words) -> None:
    again = vocabulary(vocab.to_json())
    assert type(again) is type(vocab)
    assert again.to_json() == vocab.to_json()


def test_bytes_decode_across_tokens_and_replace_what_is_no_utf8() -> None:
    assert text_of("äö".encode(), Bytes()) == "äö"
    assert text_of(b"a\xffb\xc3", Bytes()) == "a\ufffdb\ufffd"
