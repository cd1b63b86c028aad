"""A plain network at given hyperparameters, as it learns."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from revtune.program.tasks.task import Task
from revtune.program.tasks.weight_learner import WeightLearner
from revtune.tuning.conversion.plain import plain
from revtune.tuning.hypers.constants import Constants
from revtune.tuning.trees import mapped


class PlainLearner(WeightLearner):
    """Learns by a network of torch's own layers, at hyperparameters that stay, or that are set between steps.

    Args:
        task: what is learnt.
        values: the hyperparameters' values; by default where they start.
    """

    task: Task

    def __init__(self, task: Task, values: dict[str, float] | None = None) -> None:
        self.hypers = Constants(task.hypers(), values)
        super().__init__(task)
        self._carried = None

    def build(self) -> nn.Module:
        """Torch's own layers at the values."""
        return plain(self.task.net(self.hypers), self.hypers)

    def loss(self, batch: Any) -> Tensor:
        """The mean training loss of a batch."""
        if self.task.streams:
            loss, self._carried = self.task.streamed_loss(self.model, batch, self._carried, self.hypers.numbers)
            return loss
        out = self.task.predict(self.model, batch, *([self._carried] if self.task.carry else []))
        if self.task.carry:
            out, state = out
            self._carried = mapped(Tensor.detach, state)
        return self.task.train_loss(self.model, out, batch, self.hypers.numbers).mean()

    def values(self) -> dict[str, float]:
        """The hyperparameters as they were given, or set last."""
        return dict(self.hypers.values())

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return super().state() | {"carried": self._carried, "values": self.values()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave of a learner of the same task."""
        super().restore(state)
        self._carried = state["carried"]
        self.hypers.put(state["values"])
