"""The stack that words lie in: last in, first out, in blocks that are freed."""

import random

import torch

from revtune.reversible.cells.word_store import BLOCK_WORDS, WordStore


def words(size: int, value: int) -> torch.Tensor:
    return torch.full((size,), value, dtype=torch.int16)


def test_it_is_a_stack_whatever_the_sizes() -> None:
    draw, store, wanted = random.Random(0), WordStore(), list[torch.Tensor]()
    for turn in range(3000):
        if wanted and draw.random() < 0.45:
            assert torch.equal(store.pop(), wanted.pop())
        else:
            chunk = words(draw.choice([0, 1, 1000, BLOCK_WORDS // 3, BLOCK_WORDS - 1]), turn)
            store.push(chunk)
            wanted.append(chunk)
            wanted[-1] = chunk.clone()
            chunk.zero_()  # what was pushed is a copy
        assert len(store) == len(wanted) and store.words == sum(map(len, wanted))
    assert all(torch.equal(kept, chunk) for kept, chunk in zip(store, wanted, strict=True))


def test_a_chunk_larger_than_a_block_has_one_of_its_own() -> None:
    store = WordStore()
    for size in (10, 2 * BLOCK_WORDS, 10):
        store.push(words(size, size % 1000))
    assert [len(store.pop()) for _ in range(3)] == [10, 2 * BLOCK_WORDS, 10]


def test_blocks_are_freed_with_the_last_chunk_in_them() -> None:
    store = WordStore()
    for _ in range(9):
        store.push(words(BLOCK_WORDS // 3, 1))
    assert len(store._blocks) == 3
    for left in (3, 3, 2, 2, 2, 1, 1, 1, 0):
        store.pop()
        assert len(store._blocks) == left


def test_a_copy_goes_its_own_way() -> None:
    store = WordStore()
    for value in (1, 2):
        store.push(words(100, value))
    other = store.copy()
    assert int(other.pop()[0]) == 2
    other.push(words(50, 3))
    store.push(words(60, 4))
    assert [int(store.pop()[0]) for _ in range(3)] == [4, 2, 1]
    assert [int(other.pop()[0]) for _ in range(2)] == [3, 1]
