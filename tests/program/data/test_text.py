"""Text as tokens: corpora, streams and segments."""

import pytest
import torch

from revtune.program.data.text import byte_corpus, segment, streams, word_corpus
from revtune.program.errors import Problem


def test_a_word_corpus_takes_its_vocabulary_from_training_text() -> None:
    corpus = word_corpus(["a", "<eos>"], ["b", "a"], ["<eos>"], most=10)
    assert corpus.valid.tolist() == [2, 0]
    assert len(corpus.vocabulary) == 3


def test_streams_are_columns_of_consecutive_tokens() -> None:
    rows = streams(torch.arange(11), 3, name="training")
    assert rows.tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    inputs, targets, first = segment(rows, 1, 5)
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
