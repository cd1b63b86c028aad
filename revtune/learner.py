"""A task as it is learnt, step by step: by a plain network at fixed values, or by one that tunes itself.

Both kinds of learner stand where `state()` says, and go on from there bit for bit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from revtune import checkpoint
from revtune.bilevel import clipped
from revtune.constants import Constants, plain
from revtune.convert import self_tuning
from revtune.errors import NonFiniteError
from revtune.freeze import frozen
from revtune.generators import random_states, set_random_states
from revtune.hyperparameters import Hyperparameters
from revtune.task import HyperRule, Learning, Method, Split, Task, Tuned
from revtune.trees import mapped
from revtune.tuner import Tuner

Groups = list[dict[str, Any]]
LOWEST = 0.05
FALL = 4.0
HYPER_RULES: dict[HyperRule, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop
}  # fmt: skip


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


class PlainLearner(Learner):
    """Learns by a network of torch's own layers, at hyperparameters that stay, or are put elsewhere between steps.

    Args:
        task: what is learnt.
        values: the hyperparameters' values; by default where they start.
    """

    def __init__(self, task: Task, values: dict[str, float] | None = None) -> None:
        super().__init__(task)
        self.task = task
        torch.manual_seed(task.study.seed)
        self.hypers = Constants(task.hypers(), values)
        self.model = plain(task.net(self.hypers), self.hypers)
        self.optimizer = weight_optimizer(self.learning)([{"params": list(self.model.parameters())}])
        self._done, self._carried = 0, None

    @property
    def steps(self) -> int:
        """As in `Learner`."""
        return self._done

    def update(self) -> float:
        """As in `Learner`."""
        return self.learn(self.task.train_batch(self._done))

    def learn(self, batch: Any) -> float:
        """Update the weights by a batch; the training loss."""
        self.model.train()
        out = self.task.predict(self.model, batch, *([self._carried] if self.task.carry else []))
        if self.task.carry:
            out, state = out
            self._carried = mapped(Tensor.detach, state)
        loss = self.task.train_loss(self.model, out, batch, self.hypers.numbers).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = clipped(list(self.model.parameters()), self.learning.clip)
        if not torch.isfinite(loss) or not torch.isfinite(norm):
            raise NonFiniteError(f"step {self._done + 1} has loss {loss.item()} and a gradient of norm {norm.item()}")
        self.optimizer.step()
        self._done += 1
        return loss.item()

    def values(self) -> dict[str, float]:
        """As in `Learner`."""
        return dict(self.hypers.values())

    def weights(self) -> dict[str, Tensor]:
        """As in `Learner`."""
        return checkpoint.weights(self.model)

    def state(self) -> dict[str, Any]:
        """As in `Learner`."""
        device = next(self.model.parameters()).device
        return super().state() | {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "carried": self._carried,
            "random": random_states(device), "steps": self._done, "values": self.values(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """As in `Learner`."""
        super().restore(state)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._carried, self._done = state["carried"], state["steps"]
        self.hypers.put(state["values"])
        set_random_states(state["random"], next(self.model.parameters()).device)


class TunedLearner(Learner):
    """Learns by a self-tuning network.

    Args:
        task: what is learnt.
        method: "delta" or "stn".
    """

    def __init__(self, task: Task, method: Tuned) -> None:
        super().__init__(task)
        self.task = task
        torch.manual_seed(task.study.seed)
        tuning = task.study.tuning(method)
        self.hypers = Hyperparameters(**{
            name: replace(one, scale=tuning.scale, tune_scale=tuning.tune_scales)
            for name, one in task.hypers().items()
        })  # fmt: skip
        self.model = self_tuning(task.net(self.hypers), self.hypers, batch_dim=task.batch_dim)
        rule = HYPER_RULES[tuning.optimizer]
        self.tuner = Tuner(
            self.model, lambda out, batch, h: task.train_loss(self.model, out, batch, h), task.valid_loss,
            optimizer=weight_optimizer(self.learning), method=method, predict=task.predict,
            hyper_optimizer=lambda groups: rule(groups, tuning.hyper_lr), warmup=tuning.warmup, ratio=tuning.ratio,
            entropy=tuning.entropy, clip=self.learning.clip, carry=task.carry, seed=task.study.seed,
        )  # fmt: skip
        self.optimizer, self.rates = self.tuner.optimizer, (1.0, tuning.response_lr)

    @property
    def steps(self) -> int:
        """As in `Learner`."""
        return self.tuner.steps

    def update(self) -> float:
        """As in `Learner`; a step of the hyperparameters too where one is due."""
        held_out = self.task.valid_batch(self.tuner.valid_steps) if self.tuner.due else None
        return self.tuner.step(self.task.train_batch(self.tuner.steps), held_out)[0]

    def values(self) -> dict[str, float]:
        """As in `Learner`."""
        return self.tuner.values()

    def weights(self) -> dict[str, Tensor]:
        """As in `Learner`."""
        return checkpoint.weights(frozen(self.model))

    def state(self) -> dict[str, Any]:
        """As in `Learner`."""
        return super().state() | {"tuner": self.tuner.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """As in `Learner`."""
        super().restore(state)
        self.tuner.load_state_dict(state["tuner"])


def learner(task: Task, method: Method, values: dict[str, float] | None = None) -> Learner:
    """The learner of a method; `values` is for plain ones."""
    return PlainLearner(task, values) if method == "plain" else TunedLearner(task, method)


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
