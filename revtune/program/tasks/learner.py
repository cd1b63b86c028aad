"""A task as it is learnt, step by step: by a plain network at fixed values, or by one that tunes itself.

Both kinds of learner stand where `state()` says, and go on from there bit for bit.
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
from revtune.program.tasks.task import Learning, Split
from revtune.tuning.trees import mapped

Groups = list[dict[str, Any]]


LOWEST = 0.05


FALL = 4.0


class Learnt(Protocol):
    """What any learner needs of a task."""

    study: Any

    def digest(self) -> str:
        """What tells the data from others."""

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Figures over all of a split by a model in evaluation mode."""


@dataclass
class Place:
    """How well a run does so far.

    Attributes:
        best: the lowest held-out loss, in nats, and `best_step`, when it was.
        stale: validations since then, or since the learning rate last fell.
        falls: how often it did.
        worse: validations since the best, whatever the rate did.
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
        place: how well it does.
        best: the network's state at the lowest held-out loss.
        rates: learning rates of the optimizer's groups, in the schedule's.
        fall: what a plateau divides the learning rate by.
    """

    rates: tuple[float, ...] = (1.0,)
    fall: float = FALL
    model: nn.Module
    optimizer: torch.optim.Optimizer
    learning: Learning

    def __init__(self, task: Learnt) -> None:
        self.learnt, self.learning, self.place = task, task.study.learning, Place()
        self.best: dict[str, Any] = {}
        self._losses: list[float] = [0.0, 0]

    @property
    @abstractmethod
    def steps(self) -> int:
        """Updates of the weights so far."""

    @abstractmethod
    def update(self) -> float:
        """One more; the training loss."""

    @abstractmethod
    def values(self) -> dict[str, float]:
        """Hyperparameters in user units."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The plain network's at these values, by name."""

    def step(self) -> None:
        """One more update.

        Raises:
            NonFiniteError: a loss or gradient is no finite number.
        """
        self.set_rate()
        self._losses[0] += self.update()
        self._losses[1] += 1

    def set_rate(self) -> None:
        """Give the optimizer the learning rate of this step."""
        rate = learning_rate(self.learning, self.steps, self.place.falls, self.fall)
        for group, times in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = times * rate

    def figures(self, split: Split) -> dict[str, float]:
        """What the network comes to on a whole split."""
        self.model.eval()
        return self.learnt.evaluate(self.model, split)

    def validate(self) -> dict[str, float]:
        """The figures on held-out data, and the mean training loss since the last time.

        The best state so far is kept, and a plateau lowers the learning rate.

        Raises:
            NonFiniteError: the loss is no finite number.
        """
        found, place = self.figures("valid"), self.place
        if not math.isfinite(found["loss"]):
            raise NonFiniteError(f"the held-out loss is {found['loss']} after step {self.steps}")
        total, count = self._losses
        found["train_loss"], self._losses = total / max(1, count), [0.0, 0]
        if found["loss"] < place.best:
            place.best, place.best_step, place.stale, place.worse = found["loss"], self.steps, 0, 0
            self.best = mapped(lambda one: one.detach().clone(), dict(self.model.state_dict()))
            return found
        place.stale, place.worse = place.stale + 1, place.worse + 1
        if self.learning.schedule == "plateau" and place.stale >= self.learning.patience:
            place.falls, place.stale = place.falls + 1, 0
        return found

    @property
    def stopped_improving(self) -> bool:
        """Whether `patience` validations in a row were no better, on a plateau as many again after the rate fell."""
        times = 2 if self.learning.schedule == "plateau" else 1
        return self.place.worse >= times * self.learning.patience

    @property
    def unvalidated(self) -> bool:
        """Whether it has learnt since it was last validated."""
        return self._losses[1] > 0

    def take_best(self) -> None:
        """Be the network at its best again."""
        if self.best:
            self.model.load_state_dict(self.best)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, in tensors, numbers and words."""
        return {"place": asdict(self.place), "best": self.best, "losses": self._losses}

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where the learner of the same task stood whose `state()` this is."""
        place = {"worse": state["place"]["stale"], **state["place"]}  # earlier checkpoints have one count for both
        self.place, self.best, self._losses = Place(**place), state["best"], state["losses"]


def weight_optimizer(learning: Learning) -> Callable[[Groups], torch.optim.Optimizer]:
    """A factory of the weights' optimizer."""
    if learning.optimizer == "adam":
        return lambda groups: torch.optim.Adam(groups, learning.lr)
    return lambda groups: torch.optim.SGD(groups, learning.lr, momentum=learning.momentum)


def learning_rate(learning: Learning, step: int, falls: int, fall: float = FALL) -> float:
    """The learning rate of a step, from 0 on, after `falls` plateaus that each divide it by `fall`."""
    if learning.schedule == "plateau":
        return learning.lr / fall**falls
    if learning.schedule == "constant":
        return learning.lr
    done = min(1.0, step / learning.steps)
    return learning.lr * (LOWEST + (1 - LOWEST) * (1 + math.cos(math.pi * done)) / 2)
