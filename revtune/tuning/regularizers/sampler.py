"""A batch sampler that draws hyperparameters for each example, in the main process.

Workers run ahead of training and in processes of their own, so they cannot read hyperparameters as they stand. The main
process draws perturbed values for each example and hands them out with its index. It keeps what it handed out until the
batch comes back. So a step trains at just the values that its examples were augmented by, however old those are, and a
resumed run hands out the same again. A value without perturbation is called still.

Shapes: B examples, n hyperparameters, R of them read by augmentation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from revtune.tuning.hypers.hyperparameters import Hyperparameters, Values
from revtune.tuning.own_generators import generators_of, set_states, states_of


class AugmentedBatch(NamedTuple):
    """A batch whose examples were augmented by values drawn for them; training steps take it as they take a batch.

    Attributes:
        batch: the examples, augmented at `raw`.
        raw: perturbed l of each example, (B, n).
        still: the same examples, augmented at the current values, for the weights of Delta-STN; None for STN.
    """

    batch: Any
    raw: Tensor
    still: Any = None


class ExampleKey(NamedTuple):
    """What a worker is handed for one example: its index, a seed, l, and values in user units, perturbed and still."""

    item: int
    seed: int
    raw: list[float]
    values: list[float]
    still: list[float] | None


@dataclass
class BatchKeys:
    """Keys of a batch, as tensors: `item` and `seed` (B,), `raw` (B, n), `values` and `still` (B, R).

    The names of its fields are saved in states.
    """

    item: Tensor
    seed: Tensor
    raw: Tensor
    values: Tensor
    still: Tensor | None

    def keys(self) -> list[ExampleKey]:
        """The key of each example."""
        still = [None] * len(self.item) if self.still is None else self.still.tolist()
        lists = (self.item.tolist(), self.seed.tolist(), self.raw.tolist(), self.values.tolist(), still)
        return [ExampleKey(*fields) for fields in zip(*lists, strict=True)]


class ValueSampler:
    """A batch sampler that draws perturbed hyperparameters with the indices, in the main process.

    Args:
        size: how many examples there are.
        hypers: what is perturbed; while it is centred (Delta-STN), still values are handed out too.
        reads: names of the hyperparameters that augmentation reads.
        batch_size: B, of the last batch perhaps less.
        shuffle: whether each pass has an order of its own.
        drop_last: whether to leave out a last batch that is smaller.
        sampler: indices in another order, gone through once a pass, instead of shuffling.
        seed: of orders, perturbations and the examples' own seeds.

    Raises:
        ValueError: there is no hyperparameter of a name; the batch size is no positive integer.

    Example:
        >>> sampler = ValueSampler(5, Hyperparameters(hue=Between(0.1, 0.0, 0.5)), ["hue"], batch_size=2)
        >>> [len(keys) for keys in sampler]
        [2, 2, 1]
    """

    def __init__(
        self,
        size: int,
        hypers: Hyperparameters,
        reads: Sequence[str],
        *,
        batch_size: int,
        shuffle: bool = True,
        drop_last: bool = False,
        sampler: Iterable[int] | None = None,
        seed: int = 0,
    ) -> None:
        unknown = [name for name in reads if name not in hypers.names]
        if unknown:
            raise ValueError(f"reads: there is no hyperparameter {unknown[0]!r}; there are {', '.join(hypers.names)}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
        self.size, self.hypers, self.reads, self.batch_size = size, hypers, tuple(reads), batch_size
        self.shuffle, self.drop_last, self.sampler = shuffle, drop_last, sampler
        self._generator, self._seed = torch.Generator().manual_seed(seed), seed
        self._noise: torch.Generator | None = None
        self._order: Tensor | None = None
        self._place, self._handed_out = 0, deque[BatchKeys]()
        self._resumes = False  # whether the next pass is the rest of a saved one

    def __len__(self) -> int:
        """Batches in a pass."""
        try:
            size = self.size if self.sampler is None else len(self.sampler)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"{type(self.sampler).__name__} does not say how many indices it gives") from None
        return size // self.batch_size if self.drop_last else -(-size // self.batch_size)

    def __iter__(self) -> Iterator[list[ExampleKey]]:
        """The batches of a pass, or of the rest of a saved one, which begins with those that had not come back."""
        if not self._resumes:
            self._begin()
        self._resumes = False
        for batch in list(self._handed_out):
            yield batch.keys()
        while (index := self._next_indices()) is not None:
            batch = self._draw_keys(index)
            self._handed_out.append(batch)
            yield batch.keys()

    def _begin(self) -> None:
        self._handed_out.clear()
        self._place = 0
        if self.sampler is not None:
            self._order = torch.tensor([int(i) for i in self.sampler])
        else:
            self._order = (
                torch.randperm(self.size, generator=self._generator) if self.shuffle else torch.arange(self.size)
            )

    def _next_indices(self) -> Tensor | None:
        """The indices of the next batch; None at the end of the pass."""
        assert self._order is not None
        index = self._order[self._place : self._place + self.batch_size]
        if len(index) < (self.batch_size if self.drop_last else 1):
            return None
        self._place += len(index)
        return index

    @torch.no_grad()
    def _draw_keys(self, index: Tensor) -> BatchKeys:
        current = self.hypers.raw.expand(len(index), -1)
        raw = self.hypers.perturbed(len(index), self._noise_generator(current.device))
        still = self._values(current) if self.hypers.centred else None
        seed = torch.randint(2**62, (len(index),), generator=self._generator)  # workers add 1, within an int64
        return BatchKeys(index, seed, raw.cpu(), self._values(raw), still)

    def _values(self, raw: Tensor) -> Tensor:
        """Values, in user units, of the hyperparameters that augmentation reads, (B, R)."""
        values = Values(self.hypers, raw)
        columns = [values[name].expand(len(raw)) for name in self.reads]
        return torch.stack(columns, 1).cpu() if columns else torch.empty(len(raw), 0)

    def _noise_generator(self, device: torch.device) -> torch.Generator:
        if self._noise is None:
            self._noise = torch.Generator(device).manual_seed(self._seed)
        return self._noise

    def take(self) -> None:
        """Let go of the batch handed out first, which has come back."""
        self._handed_out.popleft()

    def finish(self) -> None:
        """End the pass: the next one begins anew."""
        self._order = None

    def state_dict(self) -> dict[str, Any]:
        """Where the pass stands, with what is handed out and has not come back: tensors and numbers."""
        return {
            "order": self._order, "place": self._place, "waiting": [asdict(batch) for batch in self._handed_out],
            "generator": self._generator.get_state(), "noise": None if self._noise is None else self._noise.get_state(),
            "sampler": states_of(generators_of(self.sampler)),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state: the next pass is the rest of the saved one."""
        self._order, self._place = state["order"], state["place"]
        self._handed_out = deque(BatchKeys(**batch) for batch in state["waiting"])
        self._generator.set_state(state["generator"])
        set_states(generators_of(self.sampler), state.get("sampler", []))
        self._noise = None
        if state["noise"] is not None:
            self._noise_generator(self.hypers.raw.device).set_state(state["noise"])
        self._resumes = self._order is not None
