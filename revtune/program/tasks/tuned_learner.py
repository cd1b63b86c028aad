"""A self-tuning network, as it learns; and the learner of any method."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from revtune.program.runs import checkpoint
from revtune.program.tasks.learner import Learner, weight_optimizer
from revtune.program.tasks.plain_learner import PlainLearner, ValuesAt
from revtune.program.tasks.task import Method, Task
from revtune.program.tuning import Tuned
from revtune.tuning.conversion.convert import self_tuning
from revtune.tuning.conversion.freeze import frozen
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.tuner.tuner import Tuner


class TunedLearner(Learner):
    """Learns by a self-tuning network.

    Args:
        task: what is learnt.
        method: "delta" or "stn".
    """

    task: Task

    def __init__(self, task: Task, method: Tuned) -> None:
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

    def weights(self) -> dict[str, Tensor]:
        """Those of the plain network that the self-tuning one is at the present hyperparameters."""
        return checkpoint.weights(frozen(self.model))

    def state(self) -> dict[str, Any]:
        """All that the next step depends on; the tuner's state holds weights and random states too."""
        return super().state() | {"tuner": self.tuner.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave of a learner of the same task."""
        super().restore(state)
        self.tuner.load_state_dict(state["tuner"])


def tuner_of(task: Task, net: nn.Module, hypers: Hyperparameters, method: Tuned) -> Tuner:
    """What tunes a task's network, which is converted where it stands."""
    model, study = self_tuning(net, hypers, batch_dim=task.batch_dim), task.study
    losses: dict[str, Any] = {"stream": task.stream} if task.streams else {
        "train_loss": partial(task.train_loss, model), "valid_loss": task.valid_loss, "predict": task.predict
    }  # fmt: skip
    return Tuner(
        model, **losses, optimizer=weight_optimizer(study.learning), method=method, clip=study.learning.clip,
        carry=task.carry, seed=study.seed, **study.tuning(method).for_tuner(),
    )  # fmt: skip


def learner(
    task: Task, method: Method, values: dict[str, float] | None = None, schedule: ValuesAt | None = None
) -> Learner:  # fmt: skip
    """The learner of a method; `values` and `schedule` are a plain one's, as `PlainLearner` tells."""
    return PlainLearner(task, values, schedule) if method == "plain" else TunedLearner(task, method)
