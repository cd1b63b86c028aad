"""A data loader whose workers augment by hyperparameters; the values come from the main process (`sampler`)."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Integer
from revtune.tuning.regularizers.sampler import AugmentedBatch, ExampleKey, ValueSampler

Augment = Callable[[Any, dict[str, float]], Any]


class TunedLoader:
    """Batches whose examples were each augmented, in workers, by values drawn for them: `sampler.AugmentedBatch`.

    A worker draws its own random numbers (torch's on the CPU, `random`'s, NumPy's) from a seed of each example. As long
    as hyperparameters do not move, a run is therefore the same with any number of workers. When they move, a worker
    augments by values of the time at which its batch was asked for, which is earlier with more workers. Saved in the
    midst of a pass and resumed with as many workers, it goes on bit for bit. `Tuner.batches` saves and resumes it with
    the tuner.

    Args:
        dataset: has a length and items by number.
        augment: `augment(item, values)` makes a training item from one of the dataset and from values by name, in user
            units; it must not change its item.
        hypers: what is perturbed.
        reads: names of the hyperparameters that `augment` is given.
        batch_size: B, of the last batch perhaps less.
        shuffle: whether each pass has an order of its own.
        drop_last: whether to leave out a last batch that is smaller.
        sampler: indices in another order, gone through once a pass, instead of shuffling.
        collate: makes a batch of items; torch's by default.
        seed: of orders, perturbations and the examples' own seeds.
        options: further options of torch's DataLoader, such as `num_workers` and `pin_memory`.

    Raises:
        ValueError: the dataset has no length; there is no hyperparameter of a name; the batch size is no positive
            integer; `in_order` is False.

    Example:
        >>> hypers = Hyperparameters(noise=Between(0.1, 0.0, 0.3))
        >>> def augment(item, values): return item[0] + values["noise"] * torch.randn(4), item[1]
        >>> dataset = torch.utils.data.TensorDataset(torch.rand(6, 4), torch.arange(6))
        >>> for batch in TunedLoader(dataset, augment, hypers, reads=["noise"], batch_size=3): batch.raw.shape
        torch.Size([3, 1])
        torch.Size([3, 1])
    """

    def __init__(
        self,
        dataset: Any,
        augment: Augment,
        hypers: Hyperparameters,
        *,
        reads: Sequence[str],
        batch_size: int,
        shuffle: bool = True,
        drop_last: bool = False,
        sampler: Iterable[int] | None = None,
        collate: Callable[[list[Any]], Any] = default_collate,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ValueError(
                f"TunedLoader wants a dataset with a length and items by number, got {type(dataset).__name__}"
            )
        if not options.get("in_order", True):
            raise ValueError("in_order must be True, got False: steps take the values of batches in their order")
        self._sampler = ValueSampler(
            len(dataset), hypers, reads, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, sampler=sampler,
            seed=seed,
        )  # fmt: skip
        whole = tuple(isinstance(hypers.spec(name), Integer) for name in reads)
        self._loader = DataLoader(
            AugmentedDataset(dataset, augment, tuple(reads), whole),
            batch_sampler=self._sampler,
            collate_fn=CollateAugmented(collate),
            generator=torch.Generator(),  # else every pass would draw from torch's own
            **options,
        )

    def __len__(self) -> int:
        """Batches in a pass."""
        return len(self._sampler)

    @property
    def batch_sampler(self) -> ValueSampler:
        """What draws the examples of each batch and their values, as a DataLoader's does."""
        return self._sampler

    def __iter__(self) -> Iterator[AugmentedBatch]:
        """The batches of a pass, or of the rest of one that was loaded."""
        for batch in self._loader:
            self._sampler.take()
            yield batch
        self._sampler.finish()

    def state_dict(self) -> dict[str, Any]:
        """Where the pass stands: after the batch that was given last."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state: the next pass is the rest of the saved one."""
        self._sampler.load_state_dict(state)


@dataclass
class AugmentedDataset(Dataset[AugmentedBatch]):
    """What workers hold: the items of a dataset, augmented by the values of their keys.

    Args:
        dataset: the items.
        augment: as in `TunedLoader`.
        names: of the values.
        whole: which of the values are integers.
    """

    dataset: Any
    augment: Augment
    names: tuple[str, ...]
    whole: tuple[bool, ...]

    def __getitem__(self, key: ExampleKey) -> AugmentedBatch:
        """One item, as a batch of it that is not collated: `raw` is a list of numbers."""
        with random_states_kept():
            seed_all(key.seed)
            item = self.dataset[key.item]
            moved, still = (None if v is None else self._augmented(item, key.seed, v) for v in (key.values, key.still))
        return AugmentedBatch(moved, key.raw, still)  # type: ignore[arg-type]

    def _augmented(self, item: Any, seed: int, values: list[float]) -> Any:
        seed_all(seed + 1)  # the same for both views, which differ by their values alone
        numbers = (int(v) if whole else v for v, whole in zip(values, self.whole, strict=True))
        return self.augment(item, dict(zip(self.names, numbers, strict=True)))


@dataclass
class CollateAugmented:
    """Makes a batch of augmented items, both views by a function that makes a batch of items."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, items: list[AugmentedBatch]) -> AugmentedBatch:
        """The batch."""
        raw = torch.tensor([item.raw for item in items], dtype=torch.float64)
        still = None if items[0].still is None else self.collate([item.still for item in items])
        return AugmentedBatch(self.collate([item.batch for item in items]), raw, still)


def seed_all(seed: int) -> None:
    """Seed torch's generator on the CPU, `random` and, where it is used, NumPy."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)  # NumPy takes 32 bits


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """Put back the generators that `seed_all` seeds when the block ends; a worker has them to itself, and need not."""
    if get_worker_info() is not None:
        yield
        return
    numpy = sys.modules.get("numpy")
    of_torch, of_random, of_numpy = torch.get_rng_state(), random.getstate(), numpy and numpy.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(of_torch)
        random.setstate(of_random)
        if numpy:
            numpy.random.set_state(of_numpy)
