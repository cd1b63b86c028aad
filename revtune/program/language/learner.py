"""A language model as it learns, segment by segment: what the trainer asks of it, and the one that is not tuned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from revtune.program.errors import Problem
from revtune.program.language.config import Config, Learning
from revtune.program.language.model import LanguageModel
from revtune.program.runs import checkpoint
from revtune.program.runs.checkpoint import RecurrentState, Saved
from revtune.tuning.random_states import random_states, set_random_states

GENERATORS = ("cpu", "cuda")
"""What a checkpoint calls the random states, in their order."""


class Segment(NamedTuple):
    """Tokens (T, B), the tokens after them, and whether they are the first of the text."""

    inputs: Tensor
    targets: Tensor
    first: bool


class Learner(ABC):
    """A model, and all that its next update depends on.

    Args:
        model: what learns.
        config: of the run.
        device: where it computes.

    Attributes:
        optimizer: what updates the weights, and responses where there are some.
    """

    optimizer: torch.optim.Optimizer

    def __init__(self, model: LanguageModel, config: Config, device: torch.device) -> None:
        self.model, self.net, self.learning, self.device = model, config.net, config.learning, device

    @abstractmethod
    def update(self, segment: Segment, rate: float) -> dict[str, float]:
        """Update the weights; "loss" is that before it, in nats a token, "norm" the gradient's before clipping."""

    @abstractmethod
    def plain(self) -> nn.Module:
        """The model that evaluates as this one does now, without anything that is tuned."""

    def facts(self) -> dict[str, Any]:
        """Where the hyperparameters are; nothing where they stay."""
        return {}

    @abstractmethod
    def begin_anew(self) -> None:
        """Forget the state: the text begins again."""

    @abstractmethod
    def saved(self) -> Saved:
        """All that `restore` needs."""

    @abstractmethod
    def restore(self, saved: Saved, path: Path, *, step: int, position: int) -> None:
        """Take up what a learner of the same configuration had at a step and a row of the text.

        Raises:
            Problem: `saved`, from `path`, is no such learner's.
        """


class PlainLearner(Learner):
    """A model at constant dropout rates.

    Attributes:
        state: the recurrent state after the last segment; None where the text begins.
    """

    def __init__(self, model: LanguageModel, config: Config, device: torch.device) -> None:
        super().__init__(model, config, device)
        self.optimizer = optimizer(config.learning)(model.parameters())
        self.state: RecurrentState = None

    def update(self, segment: Segment, rate: float) -> dict[str, float]:
        """Update the weights; the loss in nats a token before it, and the gradient's norm before clipping."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, self.state = self.model.loss(segment.inputs, segment.targets, self.state)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.learning.clip)
        if torch.isfinite(norm):  # the caller raises otherwise, and the weights are left as they were
            self.optimizer.step()
        return {"loss": loss.item(), "norm": norm.item()}

    def plain(self) -> nn.Module:
        """The model itself."""
        return self.model

    def begin_anew(self) -> None:
        """Forget the state: the text begins again."""
        self.state = None

    def saved(self) -> Saved:
        """Weights, the optimizer's tensors, the recurrent state and the random states, by name."""
        parts = {
            "model/": checkpoint.weights(self.model),
            "optimizer/": checkpoint.optimizer_tensors(self.optimizer, self.model),
            "state/": checkpoint.state_tensors(self.state),
            "random/": dict(zip(GENERATORS, random_states(self.device), strict=False)),  # no cuda on the CPU
        }
        return Saved({prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}, {})

    def restore(self, saved: Saved, path: Path, *, step: int, position: int) -> None:
        """Take up what `saved` gave of a learner of the same configuration.

        Raises:
            Problem: it is of another one, or holds impossible values.
        """
        names = [f"random/{name}" for name in GENERATORS[: len(random_states(self.device))]]
        if missing := [name for name in names if name not in saved.tensors]:
            raise Problem(f"{path} is no checkpoint of a run: {missing[0]!r} is missing or unknown")
        checkpoint.load_weights(self.model, saved, path, prefix="model/")
        checkpoint.load_optimizer(self.optimizer, self.model, saved, path, prefix="optimizer/")
        self.state = checkpoint.state_of(saved, path, self.device, self._state_like(), prefix="state/")
        if (self.state is None) != (position == 0):
            beside = "without" if self.state is None else "with"
            raise Problem(f"{path} is no checkpoint of a run: row {position} {beside} a recurrent state")
        try:
            set_random_states([saved.tensors[name] for name in names], self.device)
        except (RuntimeError, TypeError) as error:
            raise Problem(f"{path} is no checkpoint of a run: its random states are not torch's") from error

    def _state_like(self) -> tuple[Tensor, ...]:
        """Tensors of the shapes and dtypes of this run's recurrent state, without content."""
        dtype = (
            torch.float64 if self.net.model in ("revgru", "revlstm") else torch.float32
        )  # fixed point lies in float64
        shape = (self.net.layers, self.learning.batch, self.net.hidden)
        parts = 2 if self.net.model in ("lstm", "revlstm") else 1
        return tuple(torch.empty(shape, dtype=dtype, device="meta") for _ in range(parts))


def optimizer(learning: Learning) -> Callable[[Any], torch.optim.Optimizer]:
    """What makes the optimizer that a configuration asks for, of parameters or of groups of them."""
    kind = torch.optim.Adam if learning.optimizer == "adam" else torch.optim.SGD
    return lambda parameters: kind(parameters, lr=learning.lr, weight_decay=learning.weight_decay)
