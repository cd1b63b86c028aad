"""What `revtune bench speed` measures, and the goals that we have set ourselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from revtune.program.bench.contestants import Shape

Kind = Literal["layer", "inference", "step"]


KINDS: dict[Kind, str] = {
    "layer": "bare layer, forward and backward",
    "inference": "bare layer, no gradients",
    "step": "whole training step",
}


PAIRS = (("RevGRU", "nn.GRU"), ("RevLSTM", "nn.LSTM"))
"""Each reversible cell and the layer of torch that it is measured against."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is run at which sizes.

    Attributes:
        kind: a key of `KINDS`. In a bare layer the input requires a gradient; a whole step is embedding, layer,
            readout, loss and backward.
        shape: the sizes; V counts in a whole step only.
        checkpointed: whether torch's layers compete checkpointed, too.
        products: whether the matrix products alone do, beside a bare layer.
    """

    kind: Kind
    shape: Shape
    checkpointed: bool = False
    products: bool = False

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Case:
        """A case from what `dataclasses.asdict` gave, and what was added since."""
        own = {field.name: facts[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**own, "shape": Shape(**facts["shape"])})

    @property
    def sizes(self) -> str:
        """Its sizes as tables show them, after `sizes_of`."""
        shape = self.shape
        width = [shape.hidden, shape.vocabulary] if self.kind == "step" else [shape.features, shape.hidden]
        layers = f", {shape.layers} layers" if shape.layers > 1 else ""
        return ", ".join(map(str, (shape.steps, shape.batch, *width))) + layers


def sizes_of(kind: Kind) -> str:
    """What the numbers of `Case.sizes` are."""
    return "T, B, H, V" if kind == "step" else "T, B, input, H"


class Goal(NamedTuple):
    """The largest ratio of times that will do, and a smaller one that is within reach."""

    most: float
    reach: float | None = None

    def verdict(self, ratio: float) -> str:
        """How a ratio stands to it: missed, met, or both."""
        if ratio > self.most:
            return "missed"
        return "both" if self.reach and ratio <= self.reach else "met"

    def __str__(self) -> str:
        return f"{self.most:.2f}" + (f"/{self.reach:.2f}" if self.reach else "")


BARE = (
    Shape(steps=70, batch=20, inputs=650, hidden=650),
    Shape(steps=70, batch=20, inputs=300, hidden=1100),
    Shape(steps=512, batch=16, inputs=128, hidden=128),
    Shape(steps=1000, batch=8, inputs=256, hidden=256),
)


ALONE = Shape(steps=512, batch=1, inputs=128, hidden=128)
"""One row, where a step's products are too small to hide anything behind."""


WORTH_CHECKPOINTS = 500
"""Steps from which checkpointed layers compete; a whole step also competes with shorter ones."""


WHOLE = Shape(steps=70, batch=20, hidden=650, vocabulary=10_000)


GOALS: dict[tuple[Kind, Shape, str], Goal] = {
    ("layer", BARE[0], "RevGRU"): Goal(0.75, 0.60),
    ("layer", BARE[1], "RevGRU"): Goal(0.50),
    ("layer", BARE[2], "RevGRU"): Goal(0.65, 0.60),
    ("layer", BARE[3], "RevGRU"): Goal(0.65, 0.60),
    ("layer", BARE[0], "RevLSTM"): Goal(1.3, 1.1),
    ("layer", BARE[1], "RevLSTM"): Goal(1.0),
    ("layer", BARE[2], "RevLSTM"): Goal(1.3, 1.1),
    ("layer", BARE[3], "RevLSTM"): Goal(1.3, 1.1),
    **{("inference", shape, ours): Goal(1.0) for shape in BARE for ours, _ in PAIRS},
    ("layer", ALONE, "RevGRU"): Goal(1.0),
    ("inference", ALONE, "RevGRU"): Goal(1.0),
    ("step", WHOLE, "RevGRU"): Goal(1.0),
}
"""Time of the reversible layer over that of torch's, on one thread and on two."""


Axis = Literal["steps", "hidden", "batch"]


SWEEP: dict[Axis, tuple[Shape, tuple[int, ...]]] = {
    "steps": (Shape(steps=20, batch=8, hidden=256), (20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)),
    "hidden": (Shape(steps=70, batch=20, hidden=128), (128, 256, 512, 1100)),
    "batch": (Shape(steps=200, batch=1, hidden=256), (1, 4, 16, 64)),
}
"""Where each size is varied by itself, and its values."""


LONGEST_OF_TWO = 2000
"""Steps of two layers, which double the memory; nn.LSTM takes 1.4 GB for one at 10,000."""


def plan(*, quick: bool = False, sweep: bool = False) -> Iterator[Case]:
    """The cases of a run, those of a table together."""
    if sweep:
        for kind in ("layer", "step"):
            yield from (Case(kind=kind, shape=one, checkpointed=True, products=kind == "layer") for one in swept())
    elif quick:
        yield from (Case(kind=kind, shape=one) for kind in ("layer", "inference") for one in (*BARE[::2], ALONE))
    else:
        for one in (*BARE, ALONE):
            yield Case(kind="layer", shape=one, checkpointed=one.steps >= WORTH_CHECKPOINTS, products=True)
        yield from (Case(kind="inference", shape=one) for one in (*BARE, ALONE))
        yield Case(kind="step", shape=WHOLE, checkpointed=True)


def swept() -> Iterator[Shape]:
    """The shapes of the sweep, with one layer and with two."""
    for layers in (1, 2):
        for axis, (base, values) in SWEEP.items():
            shapes = (dataclasses.replace(base, layers=layers, **{axis: value}) for value in values)
            yield from (one for one in shapes if layers == 1 or one.steps <= LONGEST_OF_TWO)


def along(axis: Axis, shape: Shape) -> bool:
    """Whether a shape is one of those where this size is varied."""
    base, _ = SWEEP[axis]
    return dataclasses.replace(shape, layers=1, **{axis: getattr(base, axis)}) == base
