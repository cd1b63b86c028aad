"""What `revtune bench tuning` measures, and the goals that we have set ourselves."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from revtune.program import recipes
from revtune.program.bench.speed_cases import Goal

Net = Literal["mnist", "fashion", "cifar10", "ptb_lstm"]


Step = Literal["plain", "STN", "Delta-STN", "STN validation", "Delta-STN validation"]


Measure = Literal["time", "memory"]


NETS: dict[Net, str] = {"mnist": "MLP", "fashion": "CNN", "cifar10": "AlexNet", "ptb_lstm": "LSTM"}
"""The recipes whose networks take part, and what these are called."""


TUNED: tuple[Step, ...] = ("STN", "Delta-STN", "STN validation", "Delta-STN validation")
"""Steps that are compared with a plain one: training steps, and steps of the hyperparameters."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network that is tuned, and its sizes.

    Attributes:
        net: the recipe that it is of, with the recipe's hyperparameters.
        width: channels of a first convolution, or units of hidden layers.
        batch: examples of a step.
        steps: T, of a language model.
        tokens: V, of a language model.
    """

    net: Net
    width: int
    batch: int
    steps: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Case:
        """A case from what `dataclasses.asdict` gave, and what was added since."""
        return cls(**{field.name: facts[field.name] for field in dataclasses.fields(cls)})

    @property
    def label(self) -> str:
        """What tables call it."""
        long = f", T={self.steps}" if self.steps else ""
        return f"{NETS[self.net]} ({self.net}), width {self.width}, B={self.batch}{long}"


LSTM = Case(net="ptb_lstm", width=200, batch=40, steps=70, tokens=10_000)


IMAGES = {"STN": Goal(2.1), "Delta-STN": Goal(3.0), "STN validation": Goal(1.5), "Delta-STN validation": Goal(1.5)}


MOST_MEMORY = Goal(2.2)


def case_of(net: Net) -> Case:
    """A network at its recipe's default sizes."""
    if net == "ptb_lstm":
        return LSTM
    study = recipes.find(net).study()
    return Case(net=net, width=study.width, batch=study.learning.batch)


def goal(measure: Measure, net: Net, step: Step) -> Goal | None:
    """The largest ratio to a plain step that will do, if we have set ourselves one."""
    if net == "ptb_lstm":
        return Goal(1.4) if (measure, step) == ("time", "STN") else None
    return IMAGES[step] if measure == "time" else MOST_MEMORY
