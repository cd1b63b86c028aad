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
        task: whose sentence pairs.
    """

    task: TranslationTask
    model: Translator

    def __init__(self, task: TranslationTask) -> None:
        super().__init__(task)
        torch.manual_seed(task.study.seed)
        self.model, self.fall = task.net(), task.study.learning.fall
        self.optimizer = weight_optimizer(self.learning)([{"params": list(self.model.parameters())}])
        self._steps = 0

    @property
    def steps(self) -> int:
        """Updates of the weights so far."""
        return self._steps

    def update(self) -> float:
        """Update the weights by the task's next batch; the mean loss in nats a word."""
        return self.learn(self.task.train_batch(self._steps))

    def learn(self, batch: Batch) -> float:
        """Update the weights by a batch; the mean loss in nats a word."""
        self.model.train()
        loss = self.model.loss(batch) / int(batch.lengths.sum())
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.learning.clip or math.inf)
        if not torch.isfinite(loss) or not torch.isfinite(norm):
            raise NonFiniteError(f"step {self._steps + 1} has loss {loss.item()} and a gradient of norm {norm.item()}")
        self.optimizer.step()
        self._steps += 1
        return loss.item()

    def values(self) -> dict[str, float]:
        """The learning rate, as a translator has no hyperparameters that are tuned."""
        return {"lr": self.optimizer.param_groups[0]["lr"]}

    def weights(self) -> dict[str, Tensor]:
        """The translator's own."""
        return checkpoint.weights(self.model)

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
