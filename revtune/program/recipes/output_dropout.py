"""Output dropout of a language model: tuned from five starts, against fixed and moving rates; --full for 650 units."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from revtune.program.data.text import Corpus, Segment
from revtune.program.errors import Problem
from revtune.program.language.model import Out
from revtune.program.language.regularizers import cross_entropy
from revtune.program.layers import REVERSIBLE
from revtune.program.recipes import ptb_lstm
from revtune.program.recipes.ptb_lstm import PtbLstm, WordStudy
from revtune.program.tasks.task import Learning
from revtune.program.tuning import Tuned
from revtune.tuning.hypers.kinds import Hyper, Rate

kind = "output_dropout"

NAME = "output_drop"
"""The hyperparameter: `ptb_lstm`'s dropout of that name."""


@dataclass(frozen=True, kw_only=True)
class OutputDropoutStudy(WordStudy):
    """What the experiment compares."""

    method: Tuned = "stn"
    """What tunes the rate."""
    starts: tuple[float, ...] = (0.05, 0.3, 0.5, 0.7, 0.9)
    """Rates that it is tuned from; the schedule from the first is replayed."""
    rates: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    """Rates that stay."""
    deviation: float = 0.05
    """Standard deviation of the noise on the best fixed rate."""
    amplitude: float = 0.1
    """Amplitude of the sinusoid about the best fixed rate."""
    period: int = 400
    """Updates of one period of the sinusoid."""

    def contestants(self) -> list[str]:
        """All that compete, in the order in which they can learn."""
        tuned = [f"tuned-{rate}" for rate in self.starts]
        fixed = [f"fixed-{rate}" for rate in self.rates]
        return [*tuned, *fixed, "noisy", "sinusoid", "final", "replayed"]


def recipe(*, full: bool = False) -> OutputDropoutStudy:
    """The settings of `ptb_lstm`; in the small study's updates all fixed rates but the highest stop improving."""
    base = ptb_lstm.study("paper" if full else "small")
    own = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    if full:
        return OutputDropoutStudy(**own, period=1_200)
    learning: Learning = own["learning"]
    own["learning"] = dataclasses.replace(learning, steps=1_200)
    return OutputDropoutStudy(**own, period=400)


class OutputDropout(PtbLstm):
    """A language model that drops its outputs, and nothing else.

    Args:
        study: its settings.
        corpus: the text; loaded by default.
        start: where the rate starts.
    """

    def __init__(self, study: WordStudy, corpus: Corpus | None = None, start: float = ptb_lstm.START) -> None:
        if study.model in REVERSIBLE:
            raise Problem(f"--model must be lstm or gru, whose output dropout is tuned, got {study.model}", code=2)
        super().__init__(study, corpus)
        self.start = start

    def hypers(self) -> dict[str, Hyper]:
        """The rate alone."""
        return {NAME: Rate(self.start)}

    def train_loss(self, model: nn.Module, out: Out, batch: Segment, h: Any) -> Tensor:
        """Cross entropy alone, without `PtbLstm`'s penalties."""
        return cross_entropy(out, batch)
