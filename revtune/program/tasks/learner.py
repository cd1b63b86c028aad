"""A task as it is learnt, step by step: by a plain network at fixed values, or by one that tunes itself.

Both kinds of learner can be restored from what `state()` gives, and then go on bit for bit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from revtune.errors import NonFiniteError
from revtune.program.runs import checkpoint
from revtune.program.runs.schedule import FALL
from revtune.program.tasks.task import Learning, Split
from revtune.tuning.trees import mapped

Groups = list[dict[str, Any]]
"""An optimizer's parameter groups."""


class Learnable(Protocol):
    """What any learner needs of a task."""

    study: Any

    def digest(self) -> str:
        """What tells the data from others."""

    def train_batch(self, step: int) -> Any:
        """The batch of an update, from 0 on."""

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Figures over all of a split by a model in evaluation mode."""


@dataclass
class Progress:
    """How well a run does so far; checkpoints hold these names.

    Attributes:
        best: the lowest held-out loss, in nats, and `best_step`, the step that it was found at.
        stale: validations since then, or since the learning rate last fell.
        falls: how often the learning rate fell.
        worse: validations since the best one, whatever the rate did.
    """

    best: float = math.inf
    best_step: int = 0
    stale: int = 0
    falls: int = 0
    worse: int = 0


class Learner(ABC):
    """What both kinds have in common.

    Args:
        task: what is learnt.

    Attributes:
        model: the network.
        progress: how well it does.
        best: the network's state at the lowest held-out loss.
        rates: learning rates of the optimizer's groups, as multiples of the schedule's.
        fall: what a plateau divides the learning rate by.
    """

    rates: tuple[float, ...] = (1.0,)
    fall: float = FALL
    task: Learnable
    model: nn.Module
    optimizer: torch.optim.Optimizer
    learning: Learning

    def __init__(self, task: Learnable) -> None:
        self.task, self.learning, self.progress = task, task.study.learning, Progress()
        self.best: dict[str, Any] = {}
        self._losses: list[float] = [0.0, 0]  # their sum and count since the last validation

    @property
    @abstractmethod
    def steps(self) -> int:
        """Updates of the weights so far."""

    @abstractmethod
    def update(self) -> float:
        """Update the weights once more; the training loss."""

    @abstractmethod
    def values(self) -> dict[str, float]:
        """Hyperparameters in user units."""

    @abstractmethod
    def plain(self) -> nn.Module:
        """The network that evaluates as this one does now, without anything that is tuned."""

    def weights(self) -> dict[str, Tensor]:
        """The weights of the plain network at these values, by name."""
        return checkpoint.weights(self.plain())

    def told(self) -> dict[str, Any]:
        """What a validation tells beside its figures: the hyperparameters."""
        return {"values": self.values()}

    def step(self) -> float:
        """Update the weights once more, at the schedule's learning rate; the training loss.

        Raises:
            NonFiniteError: a loss or gradient is no finite number.
        """
        self.set_rate()
        loss = self.update()
        self._losses[0] += loss
        self._losses[1] += 1
        return loss

    def set_rate(self) -> None:
        """Give the optimizer the learning rate of this step."""
        rate = self.learning.rate(self.steps, self.progress.falls, self.fall)
        for group, times in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = times * rate

    def figures(self, split: Split) -> dict[str, float]:
        """What the task measures of the network on a whole split."""
        self.model.eval()
        return self.task.evaluate(self.model, split)

    def validate(self) -> dict[str, float]:
        """The figures on held-out data, and the mean training loss since the last validation.

        The best state so far is kept, and a plateau lowers the learning rate.

        Raises:
            NonFiniteError: the loss is no finite number.
        """
        figures, progress = self.figures("valid"), self.progress
        if not math.isfinite(figures["loss"]):
            raise NonFiniteError(f"the held-out loss is {figures['loss']} after step {self.steps}")
        total, count = self._losses
        figures["train_loss"], self._losses = total / max(1, count), [0.0, 0]
        if figures["loss"] < progress.best:
            progress.best, progress.best_step, progress.stale, progress.worse = figures["loss"], self.steps, 0, 0
            # copied, as the next updates write to the same tensors
            self.best = mapped(lambda tensor: tensor.detach().clone(), dict(self.model.state_dict()))
            return figures
        progress.stale, progress.worse = progress.stale + 1, progress.worse + 1
        if self.learning.schedule == "plateau" and progress.stale >= self.learning.patience:
            progress.falls, progress.stale = progress.falls + 1, 0
        return figures

    @property
    def past_its_schedule(self) -> bool:
        """Whether the learning rate has come to the end of a cosine."""
        return self.learning.schedule == "cosine" and self.steps >= self.learning.steps

    @property
    def stopped_improving(self) -> bool:
        """Whether `patience` validations in a row were no better; twice as many where a plateau lowers the rate."""
        times = 2 if self.learning.schedule == "plateau" else 1  # the lower rate has its own chance
        return self.progress.worse >= times * self.learning.patience

    @property
    def unvalidated(self) -> bool:
        """Whether it has learnt since it was last validated."""
        return self._losses[1] > 0

    def take_best(self) -> None:
        """Put the network back to its best state."""
        if self.best:
            self.model.load_state_dict(self.best)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, in tensors, numbers and words."""
        return {"place": asdict(self.progress), "best": self.best, "losses": self._losses}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave of a learner of the same task."""
        progress = {"worse": state["place"]["stale"], **state["place"]}  # earlier checkpoints have one count for both
        self.progress, self.best, self._losses = Progress(**progress), state["best"], state["losses"]


def weight_optimizer(learning: Learning) -> Callable[[Groups], torch.optim.Optimizer]:
    """A factory of the weights' optimizer."""
    kind: Any = torch.optim.Adam if learning.optimizer == "adam" else torch.optim.SGD
    return lambda groups: kind(groups, **learning.of_rule())
