"""One network whose weights alone are learnt, by one optimizer: what plain networks and translators share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from revtune.errors import NonFiniteError
from revtune.program.tasks.learner import Learnable, Learner, weight_optimizer
from revtune.tuning.random_states import random_states, set_random_states
from revtune.tuning.tuner.bilevel import clip_gradients


class WeightLearner(Learner):
    """Learns the weights of a network at hyperparameters that no gradient moves."""

    def __init__(self, task: Learnable) -> None:
        super().__init__(task)
        torch.manual_seed(task.study.seed)
        self.model = self.build()
        self.optimizer = weight_optimizer(self.learning)([{"params": list(self.model.parameters())}])
        self._steps = 0

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, before it has learnt."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The mean training loss of a batch."""

    def parts(self, batch: Any) -> Iterator[Tensor]:
        """Losses whose sum is that of `loss`; each goes backward before the next is asked for."""
        yield self.loss(batch)

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
        self.optimizer.zero_grad()
        loss = 0.0
        for part in self.parts(batch):
            part.backward()
            loss += part.item()
        norm = clip_gradients(list(self.model.parameters()), self.learning.clip)
        if not math.isfinite(loss) or not torch.isfinite(norm):
            raise NonFiniteError(f"step {self._steps + 1} has loss {loss} and a gradient of norm {norm.item()}")
        self.optimizer.step()
        self._steps += 1
        return loss

    def plain(self) -> nn.Module:
        """The network itself."""
        return self.model

    def state(self) -> dict[str, Any]:
        """All that the next step depends on; dropout masks are drawn from the random states."""
        device = next(self.model.parameters()).device
        return super().state() | {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "random": random_states(device), "steps": self._steps,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` gave of a learner of the same task."""
        super().restore(state)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._steps = state["steps"]
        set_random_states(state["random"], next(self.model.parameters()).device)
