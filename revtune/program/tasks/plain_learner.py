"""A plain network at given hyperparameters, as it learns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from revtune.errors import NonFiniteError
from revtune.program.runs import checkpoint
from revtune.program.tasks.learner import Learner, weight_optimizer
from revtune.program.tasks.task import Task
from revtune.tuning.conversion.plain import plain
from revtune.tuning.hypers.constants import Constants
from revtune.tuning.random_states import random_states, set_random_states
from revtune.tuning.trees import mapped
from revtune.tuning.tuner.bilevel import clip_gradients


class PlainLearner(Learner):
    """Learns by a network of torch's own layers, at hyperparameters that stay, or that are set between steps.

    Args:
        task: what is learnt.
        values: the hyperparameters' values; by default where they start.
    """

    task: Task

    def __init__(self, task: Task, values: dict[str, float] | None = None) -> None:
        super().__init__(task)
        torch.manual_seed(task.study.seed)
        self.hypers = Constants(task.hypers(), values)
        self.model = plain(task.net(self.hypers), self.hypers)
        self.optimizer = weight_optimizer(self.learning)([{"params": list(self.model.parameters())}])
        self._steps, self._carried = 0, None

    @property
    def steps(self) -> int:
        """Updates of the weights so far."""
        return self._steps

    def update(self) -> float:
        """Update the weights by the task's next batch; the training loss."""
        return self.learn(self.task.train_batch(self._steps))

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
        norm = clip_gradients(list(self.model.parameters()), self.learning.clip)
        if not torch.isfinite(loss) or not torch.isfinite(norm):
            raise NonFiniteError(f"step {self._steps + 1} has loss {loss.item()} and a gradient of norm {norm.item()}")
        self.optimizer.step()
        self._steps += 1
        return loss.item()

    def values(self) -> dict[str, float]:
        """The hyperparameters as they were given, or set last."""
        return dict(self.hypers.values())

    def weights(self) -> dict[str, Tensor]:
        """The network's own."""
        return checkpoint.weights(self.model)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on; dropout masks are drawn from the random states."""
        device = next(self.model.parameters()).device
        return super().state() | {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "carried": self._carried,
            "random": random_states(device), "steps": self._steps, "values": self.values(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave of a learner of the same task."""
        super().restore(state)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._carried, self._steps = state["carried"], state["steps"]
        self.hypers.put(state["values"])
        set_random_states(state["random"], next(self.model.parameters()).device)
