"""Batches: every sentence once an epoch, like ones together, the same whenever they are asked for."""

import random

import torch

from revtune.program.data.buckets import batch, by_length, order, padded

DRAW = random.Random(3)
PAIRS = [([1] * DRAW.randint(1, 30), [2] * DRAW.randint(2, 30)) for _ in range(500)]


def test_an_epoch_has_every_sentence_once_in_an_order_of_its_own() -> None:
    first, second = order(PAIRS, 16, 1, 0), order(PAIRS, 16, 1, 1)
    for one in (first, second):
        assert sorted(number for some in one for number in some) == list(range(500))
    assert first != second and first == order(PAIRS, 16, 1, 0) != order(PAIRS, 16, 2, 0)


def test_like_ones_are_together() -> None:
    padding = []
    for numbers in order(PAIRS, 16, 1, 0):
        lengths = [len(PAIRS[one][1]) for one in numbers]
        padding.append(max(lengths) * len(lengths) - sum(lengths))
    assert sum(padding) < 0.1 * sum(len(pair[1]) for pair in PAIRS)


def test_evaluation_goes_by_length() -> None:
    lengths = [len(PAIRS[one][0]) for numbers in by_length(PAIRS, 32) for one in numbers]
    assert lengths == sorted(lengths) and len(lengths) == 500


def test_a_batch_reads_the_start_first_and_predicts_the_end_last() -> None:
    found = batch([([5, 6, 7], [8, 9, 4]), ([5], [8, 4])], start=4)
    assert found.source.tolist() == [[5, 5], [6, 0], [7, 0]] and found.source_lengths.tolist() == [3, 1]
    assert found.inputs.tolist() == [[4, 4], [8, 8], [9, 4]]
    assert found.targets.tolist() == [[8, 8], [9, 4], [4, 0]] and found.lengths.tolist() == [3, 2]


def test_empty_sentences_are_padded_too() -> None:
    rows, lengths = padded([[], [3, 3]])
    assert torch.equal(rows, torch.tensor([[0, 3], [0, 3]])) and lengths.tolist() == [1, 2]
