"""Batches of sentences of like length, in an order that a seed and an epoch's number decide.

Shapes: S source steps, T target steps, B sentences.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Sentence pairs: source (S, B) with lengths (B,), decoder's inputs and targets (T, B) with lengths (B,)."""

    source: Tensor
    source_lengths: Tensor
    inputs: Tensor
    targets: Tensor
    lengths: Tensor


TokenPair = tuple[list[int], list[int]]
"""Source and target."""

POOL = 50
"""Batches whose sentences are sorted by length together: enough for little padding, few enough to stay shuffled."""


def order(pairs: Sequence[TokenPair], size: int, seed: int, epoch: int) -> list[list[int]]:
    """The sentences' numbers of each batch of an epoch: shuffled, sorted by length pool by pool, batches shuffled."""
    draw = random.Random(f"{seed} {epoch}")  # seeded by a string: the same in every process
    numbers = list(range(len(pairs)))
    draw.shuffle(numbers)
    batches: list[list[int]] = []
    for first in range(0, len(numbers), POOL * size):
        pool = sorted(
            numbers[first : first + POOL * size], key=lambda number: (len(pairs[number][1]), len(pairs[number][0]))
        )
        batches += [pool[at : at + size] for at in range(0, len(pool), size)]
    draw.shuffle(batches)
    return batches


def by_length(pairs: Sequence[TokenPair], size: int) -> list[list[int]]:
    """The sentences' numbers of batches to evaluate, shortest sources first."""
    numbers = sorted(range(len(pairs)), key=lambda number: len(pairs[number][0]))
    return [numbers[at : at + size] for at in range(0, len(numbers), size)]


def batch(pairs: Sequence[TokenPair], start: int) -> Batch:
    """Pairs as padded tensors; `start` is what the decoder reads first, and what sentences end with."""
    source, source_lengths = padded([pair[0] for pair in pairs])
    targets, lengths = padded([pair[1] for pair in pairs])
    inputs = torch.cat([torch.full_like(targets[:1], start), targets[:-1]])
    return Batch(source, source_lengths, inputs, targets, lengths)


def padded(sentences: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Sentences as the columns of a tensor (T, B), zeros below them, and their lengths (B,).

    An empty sentence has length 1, as packed sequences take no length of 0.
    """
    lengths = torch.tensor([max(1, len(sentence)) for sentence in sentences])
    rows = torch.zeros(int(lengths.max()), len(sentences), dtype=torch.long)
    for column, sentence in enumerate(sentences):
        rows[: len(sentence), column] = torch.tensor(sentence, dtype=torch.long)
    return rows, lengths
