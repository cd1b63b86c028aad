"""A self-tuning network, as it learns; and the learner of any method."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from revtune.program.runs import checkpoint
from revtune.program.tasks.learner import Learner, weight_optimizer
from revtune.program.tasks.plain_learner import PlainLearner
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
        self.hypers = Hyperparameters(**{
            name: replace(hyper, scale=tuning.scale, tune_scale=tuning.tune_scales)
            for name, hyper in task.hypers().items()
        })  # fmt: skip
        self.model = self_tuning(task.net(self.hypers), self.hypers, batch_dim=task.batch_dim)
        self.tuner = Tuner(
            self.model, **self._losses_of(task), optimizer=weight_optimizer(self.learning), method=method,
            clip=self.learning.clip, carry=task.carry, seed=task.study.seed, **tuning.for_tuner(),
        )  # fmt: skip
        self.optimizer, self.rates = self.tuner.optimizer, (1.0, tuning.response_lr)  # weights, then responses

    def _losses_of(self, task: Task) -> dict[str, Any]:
        """What the tuner is told of predictions and losses."""
        if task.streams:
            return {"stream": task.stream}
        train_loss = partial(task.train_loss, self.model)
        return {"train_loss": train_loss, "valid_loss": task.valid_loss, "predict": task.predict}

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

    def scales(self) -> dict[str, float]:
        """How far the hyperparameters are perturbed now."""
        return self.tuner.hypers.scales()

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


def learner(task: Task, method: Method, values: dict[str, float] | None = None) -> Learner:
    """The learner of a method; `values` are those of a plain one's hyperparameters, by default where they start."""
    return PlainLearner(task, values) if method == "plain" else TunedLearner(task, method)
