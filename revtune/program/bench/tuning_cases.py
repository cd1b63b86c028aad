"""What `revtune bench tuning` measures, and the goals that we have set ourselves."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from revtune.program import recipes
from revtune.program.bench.goals import Goal
from revtune.program.layers import Model

TunedNet = Literal["mnist", "fashion", "cifar10", "ptb_lstm"]

StepKind = Literal["plain", "STN", "Delta-STN", "STN validation", "Delta-STN validation"]

Measure = Literal["time", "memory"]

NETS: dict[TunedNet, str] = {"mnist": "MLP", "fashion": "CNN", "cifar10": "AlexNet", "ptb_lstm": "LSTM"}
"""The recipes whose networks take part, and what these are called."""

TUNED: tuple[StepKind, ...] = ("STN", "Delta-STN", "STN validation", "Delta-STN validation")
"""Steps that are compared with a plain one: training steps, and steps of the hyperparameters."""


@dataclass(frozen=True, kw_only=True)
class TuningCase:
    """A network that is tuned, and its sizes.

    Attributes:
        net: the recipe that it is of, with the recipe's hyperparameters.
        width: channels of a first convolution, or units of hidden layers.
        batch: examples of a step.
        steps: T, of a language model.
        tokens: V, of a language model.
        model: a language model's layers.
    """

    net: TunedNet
    width: int
    batch: int
    steps: int = 0
    tokens: int = 0
    model: Model = "lstm"

    @classmethod
    def of(cls, record: dict[str, Any]) -> TuningCase:
        """The case of a record, which has what was measured of it beside its fields."""
        return cls(**{field.name: record[field.name] for field in dataclasses.fields(cls) if field.name in record})

    @property
    def label(self) -> str:
        """What tables call it."""
        long = f", T={self.steps}" if self.steps else ""
        return f"{NETS[self.net]} ({self.net}), width {self.width}, B={self.batch}{long}"


LSTM = TuningCase(net="ptb_lstm", width=200, batch=40, steps=70, tokens=10_000)
"""The batch, span and vocabulary of MacKay et al. 2019, in a narrower network than its 650 units."""

IMAGE_TIMES = {"STN": Goal(2.1), "Delta-STN": Goal(3.0), "STN validation": Goal(1.5), "Delta-STN validation": Goal(1.5)}

IMAGE_MEMORY = Goal(2.2)
"""Like the times above, of the networks for images; the same for all steps."""


def case_of(net: TunedNet) -> TuningCase:
    """A network at its recipe's default sizes."""
    if net == "ptb_lstm":
        return LSTM
    study = recipes.find(net).study()
    return TuningCase(net=net, width=study.width, batch=study.learning.batch)


def goal(measure: Measure, net: TunedNet, step: StepKind) -> Goal | None:
    """The largest ratio to a plain step that will do, None if there is no goal."""
    if net == "ptb_lstm":
        return Goal(1.4) if (measure, step) == ("time", "STN") else None
    return IMAGE_TIMES[step] if measure == "time" else IMAGE_MEMORY
