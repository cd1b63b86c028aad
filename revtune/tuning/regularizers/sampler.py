"""Hyperparameters drawn for examples before a training step, by the sampler of a data loader.

Workers run ahead of training and in processes of their own, so they cannot read hyperparameters as they stand. The main
process draws perturbed values for every example, hands them out with its index, and keeps what it handed out until it
comes back: a step then trains at just the values that its examples were augmented by, however old, and a run that is
resumed hands out the same again.

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


class AugmentedBatch(NamedTuple):
    """A batch whose examples were augmented by values drawn for them; training steps take it as they take a batch.

    Attributes:
        batch: augmented at `raw`.
        raw: l of each example, (B, n).
        still: the same examples augmented without perturbation, for the weights of Delta-STN; None for STN.
    """

    batch: Any
    raw: Tensor
    still: Any = None


class Key(NamedTuple):
    """What a worker is handed for one example: which it is, a seed, l, and values in user units, perturbed and not."""

    item: int
    seed: int
    raw: list[float]
    values: list[float]
    still: list[float] | None


@dataclass
class Draw:
    """Keys of a batch, as tensors: `item` and `seed` (B,), `raw` (B, n), `values` and `still` (B, R)."""

    item: Tensor
    seed: Tensor
    raw: Tensor
    values: Tensor
    still: Tensor | None

    def keys(self) -> list[Key]:
        """One for each example."""
        still = [None] * len(self.item) if self.still is None else self.still.tolist()
        lists = (self.item.tolist(), self.seed.tolist(), self.raw.tolist(), self.values.tolist(), still)
        return [Key(*one) for one in zip(*lists, strict=True)]


class ValueSampler:
    """A batch sampler that draws perturbed hyperparameters with the indices, in the main process.

    Args:
        size: how many examples there are.
        hypers: what is perturbed; values without perturbation are handed out too while it is centred (Delta-STN).
        reads: names of those that augmentation reads.
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
        self._place, self._waiting = 0, deque[Draw]()
        self._resumes = False

    def __len__(self) -> int:
        """Batches in a pass."""
        try:
            size = self.size if self.sampler is None else len(self.sampler)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"{type(self.sampler).__name__} does not say how many indices it gives") from None
        return size // self.batch_size if self.drop_last else -(-size // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        """The batches of a pass, or of the rest of a saved one, beginning with those handed out and not taken."""
        if not self._resumes:
            self._begin()
        self._resumes = False
        for draw in list(self._waiting):
            yield draw.keys()
        while (index := self._next()) is not None:
            draw = self._draw(index)
            self._waiting.append(draw)
            yield draw.keys()

    def _begin(self) -> None:
        self._waiting.clear()
        self._place = 0
        if self.sampler is not None:
            self._order = torch.tensor([int(i) for i in self.sampler])
        else:
            self._order = (
                torch.randperm(self.size, generator=self._generator) if self.shuffle else torch.arange(self.size)
            )

    def _next(self) -> Tensor | None:
        """The indices of the next batch."""
        assert self._order is not None
        index = self._order[self._place : self._place + self.batch_size]
        if len(index) < (self.batch_size if self.drop_last else 1):
            return None
        self._place += len(index)
        return index

    @torch.no_grad()
    def _draw(self, index: Tensor) -> Draw:
        now = self.hypers.raw.expand(len(index), -1)
        raw = self.hypers.perturbed(len(index), self._noise_of(now.device))
        still = self._values(now) if self.hypers.centred else None
        seed = torch.randint(2**62, (len(index),), generator=self._generator)
        return Draw(index, seed, raw.cpu(), self._values(raw), still)

    def _values(self, raw: Tensor) -> Tensor:
        """Values in user units of what is read, (B, R)."""
        values = Values(self.hypers, raw)
        columns = [values[name].expand(len(raw)) for name in self.reads]
        return torch.stack(columns, 1).cpu() if columns else torch.empty(len(raw), 0)

    def _noise_of(self, device: torch.device) -> torch.Generator:
        if self._noise is None:
            self._noise = torch.Generator(device).manual_seed(self._seed)
        return self._noise

    def take(self) -> None:
        """Say that the batch handed out first has come back."""
        self._waiting.popleft()

    def finish(self) -> None:
        """Say that the pass is over."""
        self._order = None

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, with what is handed out and not taken: tensors and numbers."""
        return {
            "order": self._order, "place": self._place, "waiting": [asdict(draw) for draw in self._waiting],
            "generator": self._generator.get_state(), "noise": None if self._noise is None else self._noise.get_state(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand there: the next pass is the rest of the saved one."""
        self._order, self._place = state["order"], state["place"]
        self._waiting = deque(Draw(**one) for one in state["waiting"])
        self._generator.set_state(state["generator"])
        self._noise = None
        if state["noise"] is not None:
            self._noise_of(self.hypers.raw.device).set_state(state["noise"])
        self._resumes = self._order is not None
