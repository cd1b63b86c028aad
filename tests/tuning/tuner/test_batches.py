"""Batches of both levels: every one once a pass, held-out ones round and round, the same again after a resume."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, WeightedRandomSampler

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Between
from revtune.tuning.regularizers.loader import TunedLoader
from revtune.tuning.regularizers.sampler import AugmentedBatch
from revtune.tuning.tuner.batches import BatchIterators


def shuffled(rows: int = 10, **options: Any) -> DataLoader[Any]:
    return DataLoader(list(range(rows)), 2, shuffle=True, **options)  # type: ignore[arg-type]


def numbers(batches: Any) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def test_a_pass_has_every_batch_once_and_the_next_begins_anew() -> None:
    iterators, data = BatchIterators(), shuffled()
    for _ in range(2):
        assert sorted(sum(numbers(iterators.train_pass(data)), [])) == list(range(10))
    next(iter(iterators.train_pass(data)))
    assert sorted(sum(numbers(iterators.train_pass(data)), [])) == list(range(10))


def test_empty_data_are_refused_before_anything_is_learnt() -> None:
    iterators = BatchIterators()
    with pytest.raises(ValueError, match="the training data hold no batch"):
        iterators.check([], [1])
    with pytest.raises(ValueError, match="the validation data hold no batch"):
        iterators.check([1], [])
    iterators.check(iter([]), shuffled())
    with pytest.raises(ValueError, match="the training data hold no batch, or could be gone through only once"):
        next(iterators.train_pass(iter([])))
    once = iter([1])
    assert iterators.next_valid(once) == 1
    with pytest.raises(ValueError, match="or could be gone through only once, as a generator"):
        iterators.next_valid(once)


def test_a_generator_that_was_gone_through_is_told_in_the_next_pass() -> None:
    iterators, data = BatchIterators(), (one for one in range(3))
    assert list(iterators.train_pass(data)) == [0, 1, 2]
    with pytest.raises(ValueError, match="the training data hold no batch, or could be gone through only once"):
        list(iterators.train_pass(data))


class Numbers(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(6))


def test_loaders_that_cannot_tell_their_length_are_gone_through() -> None:
    iterators, data = BatchIterators(), DataLoader(Numbers(), 2)
    iterators.check(data, data)
    assert numbers(iterators.train_pass(data)) == numbers(iterators.train_pass(data)) == [[0, 1], [2, 3], [4, 5]]
    assert iterators.next_valid(data).tolist() == [0, 1]


def test_a_pass_that_was_saved_at_its_end_has_no_batch_left() -> None:
    iterators, data = BatchIterators(), [1, 2]
    passing = iterators.train_pass(data)
    assert [next(passing), next(passing)] == data
    other = BatchIterators()
    other.load_state_dict(iterators.state_dict())
    assert list(other.train_pass(data)) == [] and list(other.train_pass(data)) == data


@pytest.mark.parametrize("taken", [0, 2, 5, 7])
def test_loaders_with_generators_of_their_own_go_on_where_they_stood(taken: int) -> None:
    def loader() -> DataLoader[Any]:
        return shuffled(generator=torch.Generator().manual_seed(3))

    def batches(iterators: BatchIterators, data: DataLoader[Any]) -> Any:
        while True:
            yield from iterators.train_pass(data)

    whole, data = batches(BatchIterators(), loader()), loader()
    wanted = numbers(next(whole) for _ in range(15))
    begun = BatchIterators()
    first = batches(begun, data)
    found = numbers(next(first) for _ in range(taken))
    other = BatchIterators()
    other.load_state_dict(begun.state_dict())
    rest = batches(other, loader())
    assert found + numbers(next(rest) for _ in range(15 - taken)) == wanted


def test_loading_within_a_pass_is_told() -> None:
    iterators = BatchIterators()
    with pytest.raises(RuntimeError, match="a state was loaded inside a pass over batches"):
        for _ in iterators.train_pass([1, 2, 3]):
            iterators.load_state_dict(iterators.state_dict())


def test_held_out_batches_go_round_and_round() -> None:
    iterators = BatchIterators()
    assert [iterators.next_valid([1, 2, 3]) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]
    with pytest.raises(ValueError, match="the validation data hold no batch"):
        BatchIterators().next_valid([])


@pytest.mark.parametrize("own", [False, True])
def test_a_pass_goes_on_where_it_was_saved(own: bool) -> None:
    """Whether a loader draws its order from torch's generator or from one of its own."""

    def loader() -> DataLoader[Any]:
        return shuffled(generator=torch.Generator().manual_seed(7)) if own else shuffled()

    torch.manual_seed(0)
    whole = numbers(BatchIterators().train_pass(loader()))
    torch.manual_seed(0)
    iterators = BatchIterators()
    passing = iterators.train_pass(loader())
    begun = numbers(next(passing) for _ in range(2))
    saved, random = iterators.state_dict(), torch.get_rng_state()
    torch.manual_seed(99)
    other = BatchIterators()
    other.load_state_dict(saved)
    torch.set_rng_state(random)
    assert begun + numbers(other.train_pass(loader())) == whole
    assert torch.equal(torch.get_rng_state(), random)


def weighted(generator: torch.Generator) -> WeightedRandomSampler:
    return WeightedRandomSampler([1.0] * 10, 10, generator=generator)


LOADERS: dict[str, Callable[[torch.Generator], list[Any]]] = {
    "sampler": lambda g: [shuffled(), plain(sampler=weighted(g))],
    "batch_sampler": lambda g: [DataLoader(ROWS, batch_sampler=BatchSampler(weighted(g), 2, False)), plain()],
    "shared": lambda g: [shuffled(generator=g), shuffled(generator=g)],
    "shared with one that augments": lambda g: [augmenting(g), plain(sampler=weighted(g))],
    "workers that stay": lambda g: [shuffled(generator=g, num_workers=1, persistent_workers=True), shuffled()],
}
ROWS: Any = list(range(10))


def plain(**options: Any) -> DataLoader[Any]:
    return DataLoader(ROWS, 2, **options)


def drawn(iterators: BatchIterators, loaders: list[Any]) -> Iterator[list[list[int]]]:
    """Batches of both levels, without end; a held-out one after those that begin with a multiple of three."""
    while True:
        for batch in iterators.train_pass(loaders[0]):
            rows = batch.batch if isinstance(batch, AugmentedBatch) else batch
            held_out = [iterators.next_valid(loaders[1])] if rows[0] % 3 == 0 else []
            yield numbers([rows, *held_out])


def augmenting(generator: torch.Generator) -> TunedLoader:
    """Rows as they are, in an order that another loader's generator draws."""
    return TunedLoader(
        ROWS, lambda row, values: row, Hyperparameters(hue=Between(0.1, 0.0, 0.5)), reads=["hue"], batch_size=2,
        sampler=weighted(generator),
    )  # fmt: skip


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("taken", [3, 5, 7, 10])
@pytest.mark.parametrize("fresh", [True, False], ids=["in another process", "in the same"])
def test_generators_of_samplers_shared_ones_and_workers_that_stay_go_on(kind: str, taken: int, fresh: bool) -> None:
    loaders = LOADERS[kind](torch.Generator().manual_seed(7))

    def begun() -> tuple[BatchIterators, Iterator[Any]]:
        iterators = BatchIterators()
        return iterators, drawn(iterators, LOADERS[kind](torch.Generator().manual_seed(7)) if fresh else loaders)

    torch.manual_seed(0)
    iterators = BatchIterators()
    passing = drawn(iterators, loaders)
    for _ in range(taken):
        next(passing)
    saved, random = copy.deepcopy(iterators.state_dict()), torch.get_rng_state()
    rest = [next(passing) for _ in range(12)]
    torch.manual_seed(99)
    other, again = begun()
    other.load_state_dict(saved)
    torch.set_rng_state(random)
    assert [next(again) for _ in range(12)] == rest
