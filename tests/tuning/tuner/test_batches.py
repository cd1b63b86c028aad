"""Batches of both levels: every one once a pass, held-out ones round and round, the same again after a resume."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from revtune.tuning.tuner.batches import Streams


def shuffled(rows: int = 10, **options: Any) -> DataLoader[Any]:
    return DataLoader(list(range(rows)), 2, shuffle=True, **options)  # type: ignore[arg-type]


def numbers(batches: Any) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def test_a_pass_has_every_batch_once_and_the_next_begins_anew() -> None:
    streams, data = Streams(), shuffled()
    for _ in range(2):
        assert sorted(sum(numbers(streams.once(data)), [])) == list(range(10))
    next(iter(streams.once(data)))
    assert sorted(sum(numbers(streams.once(data)), [])) == list(range(10))


def test_empty_data_are_refused_before_anything_is_learnt() -> None:
    streams = Streams()
    with pytest.raises(ValueError, match="the training data hold no batch"):
        streams.check([], [1])
    with pytest.raises(ValueError, match="the validation data hold no batch"):
        streams.check([1], [])
    streams.check(iter([]), shuffled())
    with pytest.raises(ValueError, match="the training data hold no batch, or could be gone through only once"):
        next(streams.once(iter([])))
    once = iter([1])
    assert streams.again(once) == 1
    with pytest.raises(ValueError, match="or could be gone through only once, as a generator"):
        streams.again(once)


def test_a_generator_that_was_gone_through_is_told_in_the_next_pass() -> None:
    streams, data = Streams(), (one for one in range(3))
    assert list(streams.once(data)) == [0, 1, 2]
    with pytest.raises(ValueError, match="the training data hold no batch, or could be gone through only once"):
        list(streams.once(data))


class Numbers(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(6))


def test_loaders_that_cannot_tell_their_length_are_gone_through() -> None:
    streams, data = Streams(), DataLoader(Numbers(), 2)
    streams.check(data, data)
    assert numbers(streams.once(data)) == numbers(streams.once(data)) == [[0, 1], [2, 3], [4, 5]]
    assert streams.again(data).tolist() == [0, 1]


def test_a_pass_that_was_saved_at_its_end_has_no_batch_left() -> None:
    streams, data = Streams(), [1, 2]
    passing = streams.once(data)
    assert [next(passing), next(passing)] == data
    other = Streams()
    other.load_state_dict(streams.state_dict())
    assert list(other.once(data)) == [] and list(other.once(data)) == data


@pytest.mark.parametrize("taken", [0, 2, 5, 7])
def test_loaders_with_generators_of_their_own_go_on_where_they_stood(taken: int) -> None:
    def loader() -> DataLoader[Any]:
        return shuffled(generator=torch.Generator().manual_seed(3))

    def batches(streams: Streams, data: DataLoader[Any]) -> Any:
        while True:
            yield from streams.once(data)

    whole, data = batches(Streams(), loader()), loader()
    wanted = numbers(next(whole) for _ in range(15))
    begun = Streams()
    first = batches(begun, data)
    found = numbers(next(first) for _ in range(taken))
    other = Streams()
    other.load_state_dict(begun.state_dict())
    rest = batches(other, loader())
    assert found + numbers(next(rest) for _ in range(15 - taken)) == wanted


def test_loading_within_a_pass_is_told() -> None:
    streams = Streams()
    with pytest.raises(RuntimeError, match="a state was loaded inside a pass over batches"):
        for _ in streams.once([1, 2, 3]):
            streams.load_state_dict(streams.state_dict())


def test_held_out_batches_go_round_and_round() -> None:
    streams = Streams()
    assert [streams.again([1, 2, 3]) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]
    with pytest.raises(ValueError, match="the validation data hold no batch"):
        Streams().again([])


@pytest.mark.parametrize("own", [False, True])
def test_a_pass_goes_on_where_it_was_saved(own: bool) -> None:
    """Whether a loader draws its order from torch's generator or from one of its own."""

    def loader() -> DataLoader[Any]:
        return shuffled(generator=torch.Generator().manual_seed(7)) if own else shuffled()

    torch.manual_seed(0)
    whole = numbers(Streams().once(loader()))
    torch.manual_seed(0)
    streams = Streams()
    passing = streams.once(loader())
    begun = numbers(next(passing) for _ in range(2))
    saved, random = streams.state_dict(), torch.get_rng_state()
    torch.manual_seed(99)
    other = Streams()
    other.load_state_dict(saved)
    torch.set_rng_state(random)
    assert begun + numbers(other.once(loader())) == whole
    assert torch.equal(torch.get_rng_state(), random)
