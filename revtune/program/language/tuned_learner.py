"""A language model that tunes its regularizers while it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from revtune.program.data.text import segment
from revtune.program.language import regularizers
from revtune.program.language.config import Config
from revtune.program.language.learner import Learner, PlainLearner, Segment, optimizer
from revtune.program.language.model import LanguageModel
from revtune.program.layers import REVERSIBLE
from revtune.program.runs.checkpoint import Saved, not_of_this_run, packed_as, unpacked_as
from revtune.program.tuning import Tuned
from revtune.tuning.conversion.convert import self_tuning
from revtune.tuning.conversion.freeze import frozen
from revtune.tuning.tuner.schedule import Schedule
from revtune.tuning.tuner.tuner import Tuner


class TunedLearner(Learner):
    """A model whose rates and penalties are tuned on held-out text.

    Args:
        model: plain; it is converted where it stands.
        config: of the run.
        method: by which it is tuned.
        held_out: streams (N, B) of held-out text, gone through again and again.
        device: where it computes.
    """

    def __init__(
        self, model: LanguageModel, config: Config, method: Tuned, held_out: Tensor, device: torch.device
    ) -> None:
        super().__init__(model, config, device)
        self.held_out, tuning = held_out, config.tuning(method)
        hypers, streamed = regularizers.hyperparameters(config, tuning), config.net.model in REVERSIBLE
        if not streamed:
            model.rnn = regularizers.TunedStack(model.rnn.get_submodule("layers"), hypers)  # type: ignore[arg-type]
        given: dict[str, Any] = {"stream": regularizers.stream} if streamed else {
            name: getattr(regularizers, name) for name in ("predict", "train_loss", "valid_loss")
        }  # fmt: skip
        self.tuner = Tuner(
            self_tuning(model, hypers, batch_dim=1), **given, optimizer=optimizer(config.learning), method=method,
            clip=config.learning.clip, carry=True, seed=config.learning.seed, **tuning.for_tuner(),
        )  # fmt: skip
        self.optimizer = self.tuner.optimizer
        self.rates = (1.0, tuning.response_lr)  # of weights, then responses

    def update(self, segment: Segment, rate: float) -> dict[str, float]:
        """Update weights and responses, and the hyperparameters where that is due; the losses of both."""
        self.model.train()
        for group, times in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = times * rate
        loss, held_out = self.tuner.step(segment, self._next_held_out() if self.tuner.due else None)
        return {"loss": loss} if held_out is None else {"loss": loss, "held_out_loss": held_out}

    def _next_held_out(self) -> Segment:
        length = self.learning.length
        number = self.tuner.valid_steps % -(-(len(self.held_out) - 1) // length)  # the last row is only a target
        return Segment(*segment(self.held_out, number * length, length), number == 0)

    def plain(self) -> nn.Module:
        """The model with its responses folded into its weights at the present hyperparameters."""
        return frozen(self.model)

    def begin_anew(self) -> None:
        """Nothing: a segment says itself that it is the first, and the tuner then begins anew."""

    def facts(self) -> dict[str, Any]:
        """Values and scales of the hyperparameters, by option."""
        values, scales = self.tuner.values(), self.tuner.hypers.scales()
        return {"values": regularizers.by_option(values), "scales": regularizers.by_option(scales)}

    def schedule(self) -> Schedule:
        """All values that the hyperparameters have had."""
        return self.tuner.schedule()

    def saved(self) -> Saved:
        """The tuner's state, which holds weights and random states too."""
        return packed_as("tuner", self.tuner.state_dict())

    def restore(self, saved: Saved, path: Path, *, step: int, position: int) -> None:
        """Take up what `saved` gave of a learner of the same configuration.

        Raises:
            Problem: it is of another one, or damaged.
        """
        try:
            state = unpacked_as("tuner", saved)
            if state["steps"] != step:
                raise ValueError(f"its tuner is at step {state['steps']}, not {step}")
            self.tuner.load_state_dict(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise not_of_this_run(path, error) from error


def learner(model: LanguageModel, config: Config, held_out: Tensor, device: torch.device) -> Learner:
    """The learner that a configuration asks for."""
    if config.tune == "off":
        return PlainLearner(model, config, device)
    return TunedLearner(model, config, config.tune, held_out, device)
