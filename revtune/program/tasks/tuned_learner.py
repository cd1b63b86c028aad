"""A self-tuning network, as it learns; and the learner of any method."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from revtune.processes import Processes
from revtune.program.tasks.learner import Learnable, Learner, weight_optimizer
from revtune.program.tasks.plain_learner import PlainLearner, ValuesAt
from revtune.program.tasks.task import Method, Task
from revtune.program.tuning import Tuned
from revtune.tuning.conversion.convert import self_tuning
from revtune.tuning.conversion.freeze import frozen
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Hyper
from revtune.tuning.tuner.tuner import Tuner


class Tunable(Learnable, Protocol):
    """What a learner that tunes needs of a task, each as of `Task`."""

    @property
    def carry(self) -> bool:
        """Whether a state goes from batch to batch."""

    @property
    def batch_dim(self) -> int:
        """Which dimension of the layers' inputs is examples."""

    @property
    def streams(self) -> bool:
        """Whether `stream` stands in the place of `predict` and of both losses."""

    def hypers(self) -> dict[str, Hyper]:
        """What is tuned, by name."""

    def net(self, hypers: Hyperparameters) -> nn.Module:
        """A fresh network of plain layers."""

    def valid_batch(self, number: int) -> Any:
        """The batch of a step on held-out data."""

    def stream(self, model: nn.Module, batch: Any, h: Any) -> dict[str, Any]:
        """The arguments of the streamed loss."""

    @property
    def predict(self) -> Callable[..., Any]:
        """Makes the prediction, of a model and a batch."""

    def train_loss(self, model: nn.Module, out: Any, batch: Any, h: Any) -> Tensor:
        """Losses (B,) of a training step."""

    def valid_loss(self, out: Any, batch: Any) -> Tensor:
        """Losses (B,), or their mean, on held-out data."""


class TunedLearner(Learner):
    """Learns by a self-tuning network.

    Args:
        task: what is learnt.
        method: "delta" or "stn".
    """

    task: Tunable

    def __init__(self, task: Tunable, method: Tuned) -> None:
        super().__init__(task)
        torch.manual_seed(task.study.seed)
        tuning = task.study.tuning(method)
        self.hypers = tuning.hyperparameters(task.hypers())
        self.tuner = tuner_of(task, task.net(self.hypers), self.hypers, method)
        self.model = self.tuner.model
        self.optimizer, self.rates = self.tuner.optimizer, (1.0, tuning.response_lr)  # weights, then responses

    @property
    def steps(self) -> int:
        """Updates of the weights so far; those of the hyperparameters are not among them."""
        return self.tuner.steps

    def update(self) -> float:
        """Update the weights once more, and the hyperparameters where that is due; the training loss."""
        held_out = self.task.valid_batch(self.tuner.valid_steps) if self.tuner.due else None
        return self.tuner.step(self.task.train_batch(self.tuner.steps), held_out)[0]

    def values(self) -> dict[str, float]:
        """Where the hyperparameters stand now."""
        return self.tuner.values()

    def told(self) -> dict[str, Any]:
        """Where the hyperparameters and the scales of their perturbations stand."""
        return super().told() | {"scales": self.tuner.hypers.scales()}

    def plain(self) -> nn.Module:
        """The network with its responses folded into its weights, at the present hyperparameters."""
        return frozen(self.model)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on; the tuner's state holds weights and random states too."""
        return super().state() | {"tuner": self.tuner.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave of a learner of the same task."""
        super().restore(state)
        self.tuner.load_state_dict(state["tuner"])


def tuner_of(
    task: Tunable, net: nn.Module, hypers: Hyperparameters, method: Tuned, processes: Processes | None = None
) -> Tuner:  # fmt: skip
    """What tunes a task's network, which is converted where it stands; `processes` are as of `Tuner`."""
    model, study = self_tuning(net, hypers, batch_dim=task.batch_dim), task.study
    losses: dict[str, Any] = {"stream": task.stream} if task.streams else {
        "train_loss": partial(task.train_loss, model), "valid_loss": task.valid_loss, "predict": task.predict
    }  # fmt: skip
    return Tuner(
        model, **losses, optimizer=weight_optimizer(study.learning), method=method, clip=study.learning.clip,
        carry=task.carry, seed=study.seed, processes=processes, **study.tuning(method).for_tuner(),
    )  # fmt: skip


def learner(
    task: Task, method: Method, values: dict[str, float] | None = None, schedule: ValuesAt | None = None
) -> Learner:  # fmt: skip
    """The learner of a method; `values` and `schedule` are a plain one's, as `PlainLearner` tells."""
    return PlainLearner(task, values, schedule) if method == "plain" else TunedLearner(task, method)
