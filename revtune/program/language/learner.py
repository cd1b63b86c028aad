"""A language model as it learns, segment by segment: what the trainer asks of it, and the one that is not tuned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from revtune.program.data.text import Segment
from revtune.program.errors import Problem
from revtune.program.language.config import Config
from revtune.program.language.model import LanguageModel
from revtune.program.language.regularizers import by_option
from revtune.program.language.task import LanguageTask
from revtune.program.runs import checkpoint
from revtune.program.runs.checkpoint import RecurrentState, Saved, not_of_this_run
from revtune.program.runs.followed import check_fits, not_followed
from revtune.program.runs.together import joined_state, own_state
from revtune.program.tasks.learner import weight_optimizer
from revtune.tuning.conversion.replay import Replay, replay
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.random_states import random_states, set_random_states
from revtune.tuning.tuner.schedule import Schedule

GENERATORS = ("cpu", "cuda")
"""What a checkpoint calls the random states, in their order."""

REPLAY = "replay"
"""What a checkpoint calls where a schedule that is replayed is."""


class Learner(ABC):
    """A model, and all that its next update depends on.

    Args:
        task: the text, and what is learnt of it.
        config: of the run.

    Attributes:
        model: what learns.
        optimizer: what updates the weights, and responses where there are some.
    """

    model: LanguageModel
    optimizer: torch.optim.Optimizer

    def __init__(self, task: LanguageTask, config: Config) -> None:
        self.task, self.net, self.learning, self.device = task, config.net, config.learning, task.device
        self.processes = task.processes

    def built(self, hypers: Hyperparameters | None = None) -> LanguageModel:
        """The model before it has learnt, its weights by torch's generator."""
        model: Any = self.task.build(hypers, len(self.task.corpus.vocabulary))
        return cast(LanguageModel, model.to(self.device))

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
    """A model at constant dropout rates and without penalties, or one that replays a schedule of both.

    Args:
        task, config: as in `Learner`.
        schedule: what another run's hyperparameters were, or where they ended.

    Attributes:
        state: the recurrent state after the last segment; None where the text begins.

    Raises:
        Problem: the schedule is not of a net with these rates.
    """

    def __init__(self, task: LanguageTask, config: Config, schedule: Schedule | None = None) -> None:
        super().__init__(task, config)
        self.model = self.built()
        self.player = None if schedule is None else replayed(schedule, task, self.model)
        self.optimizer = weight_optimizer(config.learning)([{"params": list(self.model.parameters())}])
        self.state: RecurrentState = None

    def update(self, segment: Segment, rate: float) -> dict[str, float]:
        """Update the weights; the loss in nats a token before it, and the gradient's norm before clipping."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self.processes.share(segment.inputs.shape[1]) as weight:
            loss, self.state = self._loss(segment)
            loss = loss * weight if weight < 1.0 else loss
        self.optimizer.zero_grad()
        loss.backward()
        self.processes.add_gradients(self.model.parameters())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.learning.clip)
        if torch.isfinite(norm):  # the caller raises otherwise, and the weights are left as they were
            self.optimizer.step()
        return {"loss": self.processes.total(loss.item())[0], "norm": norm.item()}

    def _loss(self, segment: Segment) -> tuple[Tensor, RecurrentState]:
        if self.player is None:
            return self.model.loss(segment.inputs, segment.targets, self.state)
        self.player.step()
        return self.task.mean_loss(self.model, segment, self.state, self.player.values)

    def facts(self) -> dict[str, Any]:
        """Values of the hyperparameters by option, where a schedule says them."""
        return {} if self.player is None else {"values": by_option(self.player.values)}

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
            "state/": checkpoint.state_tensors(joined_state(self.processes, self.state)),
            "random/": dict(zip(GENERATORS, random_states(self.device), strict=False)),  # no cuda on the CPU
        }
        facts = {} if self.player is None else {REPLAY: self.player.state_dict()}
        return Saved({prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}, facts)

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
        state = checkpoint.state_of(saved, path, self.device, self._state_like(), prefix="state/")
        self.state = own_state(self.processes, state)
        if (self.state is None) != (position == 0):
            beside = "without" if self.state is None else "with"
            raise Problem(f"{path} is no checkpoint of a run: row {position} {beside} a recurrent state")
        try:
            set_random_states([saved.tensors[name] for name in names], self.device)
        except (RuntimeError, TypeError) as error:
            raise Problem(f"{path} is no checkpoint of a run: its random states are not torch's") from error
        if self.player is not None:
            self._restore_player(saved, path, step)

    def _restore_player(self, saved: Saved, path: Path, step: int) -> None:
        assert self.player is not None
        try:
            self.player.load_state_dict(saved.facts[REPLAY])
            if self.player.steps != step:
                raise ValueError(f"its schedule is at step {self.player.steps}, not {step}")
        except (KeyError, ValueError) as error:
            raise not_of_this_run(path, error) from error

    def _state_like(self) -> tuple[Tensor, ...]:
        """Tensors of the shapes and dtypes of this run's recurrent state, without content."""
        dtype = (
            torch.float64 if self.net.model in ("revgru", "revlstm") else torch.float32
        )  # fixed point lies in float64
        shape = (self.net.layers, self.learning.batch, self.net.hidden)
        parts = 2 if self.net.model in ("lstm", "revlstm") else 1
        return tuple(torch.empty(shape, dtype=dtype, device="meta") for _ in range(parts))


def replayed(schedule: Schedule, task: LanguageTask, model: LanguageModel) -> Replay:
    """A schedule that a task's model replays.

    Raises:
        Problem: it is none, of other hyperparameters, or sets rates that the model does not have.
    """
    check_fits(schedule, task.hypers())
    try:
        return replay(schedule, model)
    except ValueError as error:
        raise not_followed(error) from error
