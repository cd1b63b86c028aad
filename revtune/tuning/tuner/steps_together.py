"""A tuner's steps as several processes take them together, each with some rows of the batches of both levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from revtune.errors import NonFiniteError
from revtune.processes import Processes
from revtune.tuning.regularizers.sampler import AugmentedBatch


class StepsTogether:
    """What a tuner asks other processes; alone, it asks nothing.

    Args:
        processes: those that take each step; None for one alone.
        model: the network.
        size: gives how many rows a batch has.
        generator: draws perturbations, alike in all processes.

    Attributes:
        weight: the share of this process's rows in the present batch, by which its mean losses count.

    Raises:
        ValueError: it is no `Processes`, or the network has batch statistics, which would be those of some rows alone.
    """

    def __init__(
        self, processes: Processes | None, model: nn.Module, size: Callable[[Any], int], generator: torch.Generator
    ) -> None:  # fmt: skip
        if not isinstance(processes, Processes | None):
            raise ValueError(f"processes must be a revtune.Processes or None, got {type(processes).__name__}")
        self._processes = None if processes is None or processes.count == 1 else processes
        self._size, self._generator, self._told, self.weight = size, generator, False, 1.0
        if self._processes is None:
            return
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                raise ValueError(
                    f"{name}: {type(module).__name__} would go by the rows of each process alone; with several "
                    "processes, normalise by examples, as nn.GroupNorm does"
                )

    @contextmanager
    def taking(self, batch: Any) -> Iterator[None]:
        """Take a level's step within: draws are of the whole batch. A process that fails by numbers lets all fail so.

        Raises:
            ValueError: the batch comes from a `TunedLoader`, which draws for its own examples.
        """
        if self._processes is None:
            yield
            return
        if isinstance(batch, AugmentedBatch):
            raise ValueError(
                "a TunedLoader draws the values of its own examples alone, so it has no part in steps of several "
                "processes: tuned augmentations inside the network have"
            )
        with self._processes.share(self._size(batch), self._generator) as self.weight:
            self._told = False
            try:
                yield
            except NonFiniteError:
                if not self._told:  # the others wait for this one's loss
                    self._processes.total(math.nan)
                raise

    def mean(self, loss: Tensor) -> Tensor:
        """The mean loss over the rows of all processes.

        Raises:
            NonFiniteError: that of another process is NaN or infinite.
        """
        if self._processes is None:
            return loss
        self._told = True
        (total,) = self._processes.total(self.weight * loss.item())
        if not math.isfinite(total):
            raise NonFiniteError("a loss of another process is not finite; what this step moves is as before it")
        return loss.new_tensor(total)

    def all_of(self, flags: list[bool]) -> list[bool]:
        """Each flag, if it is set in all processes."""
        if self._processes is None:
            return flags
        return [not count for count in self._processes.total(*(float(not flag) for flag in flags))]

    def weighted(self, loss: Tensor) -> Tensor:
        """A loss by the share of its rows, so that the sum of all processes' gradients is that of the batch."""
        return loss if self._processes is None else loss * self.weight

    def add_weighted(self, gradients: Collection[Tensor]) -> None:
        """Make each gradient of a mean loss that of the mean over all processes."""
        if self._processes is not None:
            for gradient in gradients:
                gradient.mul_(self.weight)
            self._processes.add(list(gradients))

    def add_gradients(self, parameters: Collection[nn.Parameter]) -> None:
        """Make the gradient of each parameter, of a weighted loss, that of all processes."""
        if self._processes is not None:
            self._processes.add_gradients(parameters)
