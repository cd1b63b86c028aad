"""A language model that tunes its regularizers while it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from revtune.program.data.text import Segment
from revtune.program.language.config import Config
from revtune.program.language.learner import Learner, PlainLearner
from revtune.program.language.regularizers import by_option
from revtune.program.language.task import LanguageTask
from revtune.program.runs.checkpoint import Saved, not_of_this_run, packed_as, unpacked_as
from revtune.program.runs.together import joined_state, own_state
from revtune.program.tasks.tuned_learner import tuner_of
from revtune.program.tuning import Tuned
from revtune.tuning.conversion.freeze import frozen
from revtune.tuning.tuner.schedule import Schedule


class TunedLearner(Learner):
    """A model whose rates and penalties are tuned on held-out text.

    Args:
        task, config: as in `Learner`.
        method: by which it is tuned.
    """

    def __init__(self, task: LanguageTask, config: Config, method: Tuned) -> None:
        super().__init__(task, config)
        tuning = config.tuning(method)
        hypers = tuning.hyperparameters(task.hypers())
        self.model = self.built(hypers)
        self.tuner = tuner_of(task, self.model, hypers, method, task.processes)
        self.optimizer = self.tuner.optimizer
        self.rates = (1.0, tuning.response_lr)  # of weights, then responses

    def update(self, segment: Segment, rate: float) -> dict[str, float]:
        """Update weights and responses, and the hyperparameters where that is due; the losses of both."""
        self.model.train()
        for group, times in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = times * rate
        held_out_batch = self.task.valid_batch(self.tuner.valid_steps) if self.tuner.due else None
        loss, held_out = self.tuner.step(segment, held_out_batch)
        return {"loss": loss} if held_out is None else {"loss": loss, "held_out_loss": held_out}

    def plain(self) -> nn.Module:
        """The model with its responses folded into its weights at the present hyperparameters."""
        return frozen(self.model)

    def begin_anew(self) -> None:
        """Nothing: a segment says itself that it is the first, and the tuner then begins anew."""

    def facts(self) -> dict[str, Any]:
        """Values and scales of the hyperparameters, by option."""
        values, scales = self.tuner.values(), self.tuner.hypers.scales()
        return {"values": by_option(values), "scales": by_option(scales)}

    def schedule(self) -> Schedule:
        """All values that the hyperparameters have had."""
        return self.tuner.schedule()

    def saved(self) -> Saved:
        """The tuner's state, which holds weights and random states too."""
        state = self.tuner.state_dict()
        return packed_as("tuner", {**state, "states": joined_state(self.processes, state["states"])})

    def restore(self, saved: Saved, path: Path, *, step: int, position: int) -> None:
        """Take up what `saved` gave of a learner of the same configuration.

        Raises:
            Problem: it is of another one, or damaged.
        """
        try:
            state = unpacked_as("tuner", saved)
            if state["steps"] != step:
                raise ValueError(f"its tuner is at step {state['steps']}, not {step}")
            self.tuner.load_state_dict({**state, "states": own_state(self.processes, state["states"])})
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise not_of_this_run(path, error) from error


def learner(task: LanguageTask, config: Config, schedule: Schedule | None = None) -> Learner:
    """The learner that a configuration asks for; one that is not tuned replays a schedule, if there is one."""
    if config.tune == "off":
        return PlainLearner(task, config, schedule)
    return TunedLearner(task, config, config.tune)
