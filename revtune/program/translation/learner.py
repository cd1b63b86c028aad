"""A translator, as it learns."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from revtune.errors import NonFiniteError
from revtune.program.data.buckets import Batch
from revtune.program.runs import checkpoint
from revtune.program.tasks.learner import Learner, weight_optimizer
from revtune.program.translation.task import TranslationTask
from revtune.program.translation.translator import Translator
from revtune.tuning.random_states import random_states, set_random_states


class TranslationLearner(Learner):
    """Learns to translate.

    Args:
        task: what from.
    """

    model: Translator

    def __init__(self, task: TranslationTask) -> None:
        super().__init__(task)
        torch.manual_seed(task.study.seed)
        self.translation, self.model, self.fall = task, task.net(), task.study.learning.fall
        self.optimizer = weight_optimizer(self.learning)([{"params": list(self.model.parameters())}])
        self._done = 0

    @property
    def steps(self) -> int:
        """As in `Learner`."""
        return self._done

    def update(self) -> float:
        """As in `Learner`."""
        return self.learn(self.translation.train_batch(self._done))

    def learn(self, some: Batch) -> float:
        """Update the weights by a batch; the mean loss in nats a word."""
        self.model.train()
        loss = self.model.loss(some) / int(some.lengths.sum())
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.learning.clip or math.inf)
        if not torch.isfinite(loss) or not torch.isfinite(norm):
            raise NonFiniteError(f"step {self._done + 1} has loss {loss.item()} and a gradient of norm {norm.item()}")
        self.optimizer.step()
        self._done += 1
        return loss.item()

    def values(self) -> dict[str, float]:
        """As in `Learner`: the learning rate."""
        return {"lr": self.optimizer.param_groups[0]["lr"]}

    def weights(self) -> dict[str, Tensor]:
        """As in `Learner`."""
        return checkpoint.weights(self.model)

    def state(self) -> dict[str, Any]:
        """As in `Learner`."""
        device = next(self.model.parameters()).device
        return super().state() | {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "random": random_states(device), "steps": self._done,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """As in `Learner`."""
        super().restore(state)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._done = state["steps"]
        set_random_states(state["random"], next(self.model.parameters()).device)
