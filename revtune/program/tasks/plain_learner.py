"""A plain network at given hyperparameters, as it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from operator import add
from typing import Any

from torch import Tensor, nn

from revtune.program.tasks.task import PlainTask
from revtune.program.tasks.weight_learner import WeightLearner
from revtune.tuning.conversion.plain import plain
from revtune.tuning.hypers.constants import Constants

ValuesAt = Callable[[int], dict[str, float]]
"""Values of hyperparameters at an update, from 0 on."""


class PlainLearner(WeightLearner):
    """Learns by a network of torch's own layers, at hyperparameters that stay, or that are set between steps.

    Args:
        task: what is learnt.
        values: the hyperparameters' values; by default where they start.
        schedule: the values of each update, where they change.
    """

    task: PlainTask

    def __init__(
        self, task: PlainTask, values: dict[str, float] | None = None, schedule: ValuesAt | None = None
    ) -> None:  # fmt: skip
        self.hypers = Constants(task.hypers(), values if schedule is None else schedule(0))
        super().__init__(task)
        self.schedule, self._carried = schedule, None

    def build(self) -> nn.Module:
        """Torch's own layers at the values."""
        return plain(self.task.net(self.hypers), self.hypers)

    def update(self) -> float:
        """Update the weights by the task's next batch, at the values that are due; the training loss."""
        if self.schedule is not None:
            self.hypers.put(self.schedule(self.steps))
        return super().update()

    def parts(self, batch: Any) -> Iterator[Tensor]:
        """Parts of the mean training loss of a batch."""
        for loss, state in self.task.parts(self.model, batch, self._carried, self.hypers.numbers):
            self._carried = state
            yield loss

    def loss(self, batch: Any) -> Tensor:
        """The mean training loss of a batch."""
        return reduce(add, self.parts(batch))

    def values(self) -> dict[str, float]:
        """The hyperparameters as they were given, or set last."""
        return dict(self.hypers.values())

    def take_best(self) -> None:
        """Put the network back to its best state, and the hyperparameters to what a schedule had there."""
        super().take_best()
        if self.best and self.schedule is not None:
            self.hypers.put(self.schedule(self.progress.best_step - 1))

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return super().state() | {"carried": self._carried, "values": self.values()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave of a learner of the same task."""
        super().restore(state)
        self._carried = state["carried"]
        self.hypers.put(state["values"])
