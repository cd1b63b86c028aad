"""What `revtune bench speed` measures, and the goals that we have set ourselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from revtune.program.bench.contestants import Shape
from revtune.program.bench.goals import Goal

CaseKind = Literal["layer", "inference", "step"]

KINDS: dict[CaseKind, str] = {
    "layer": "bare layer, forward and backward",
    "inference": "bare layer, no gradients",
    "step": "whole training step",
}

PAIRS = (("RevGRU", "nn.GRU"), ("RevLSTM", "nn.LSTM"))
"""Each reversible cell and the layer of torch that it is measured against."""


@dataclass(frozen=True, kw_only=True)
class SpeedCase:
    """What is run at which sizes.

    Attributes:
        kind: a key of `KINDS`. In a bare layer the input requires a gradient; a whole step is embedding, layer,
            readout, loss and backward.
        shape: the sizes; V counts in a whole step only.
        checkpointed: whether torch's layers compete checkpointed as well.
        products: whether the matrix products alone compete with a bare layer.
    """

    kind: CaseKind
    shape: Shape
    checkpointed: bool = False
    products: bool = False

    @classmethod
    def of(cls, record: dict[str, Any]) -> SpeedCase:
        """The case of a record, which has what was measured of it beside its fields."""
        own = {field.name: record[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**own, "shape": Shape(**record["shape"])})

    @property
    def sizes(self) -> str:
        """Its sizes as tables show them, after `sizes_of`."""
        shape = self.shape
        width = [shape.hidden, shape.vocabulary] if self.kind == "step" else [shape.features, shape.hidden]
        layers = f", {shape.layers} layers" if shape.layers > 1 else ""
        return ", ".join(map(str, (shape.steps, shape.batch, *width))) + layers


def sizes_of(kind: CaseKind) -> str:
    """What the numbers of `SpeedCase.sizes` are."""
    return "T, B, H, V" if kind == "step" else "T, B, input, H"


BARE_LAYERS = (
    Shape(steps=70, batch=20, inputs=650, hidden=650),
    Shape(steps=70, batch=20, inputs=300, hidden=1100),
    Shape(steps=512, batch=16, inputs=128, hidden=128),
    Shape(steps=1000, batch=8, inputs=256, hidden=256),
)

ONE_ROW = Shape(steps=512, batch=1, inputs=128, hidden=128)
"""One row, where the products of a step are too small to hide any other cost."""

WORTH_CHECKPOINTS = 500
"""Steps from which checkpointed layers compete; a whole step also competes with shorter ones."""

WHOLE_STEP = Shape(steps=70, batch=20, hidden=650, vocabulary=10_000)

GOALS: dict[tuple[CaseKind, Shape, str], Goal] = {
    ("layer", BARE_LAYERS[0], "RevGRU"): Goal(0.75, 0.60),
    ("layer", BARE_LAYERS[1], "RevGRU"): Goal(0.50),
    ("layer", BARE_LAYERS[2], "RevGRU"): Goal(0.65, 0.60),
    ("layer", BARE_LAYERS[3], "RevGRU"): Goal(0.65, 0.60),
    ("layer", BARE_LAYERS[0], "RevLSTM"): Goal(1.3, 1.1),
    ("layer", BARE_LAYERS[1], "RevLSTM"): Goal(1.0),
    ("layer", BARE_LAYERS[2], "RevLSTM"): Goal(1.3, 1.1),
    ("layer", BARE_LAYERS[3], "RevLSTM"): Goal(1.3, 1.1),
    **{("inference", shape, ours): Goal(1.0) for shape in BARE_LAYERS for ours, _ in PAIRS},
    ("layer", ONE_ROW, "RevGRU"): Goal(1.0),
    ("inference", ONE_ROW, "RevGRU"): Goal(1.0),
    ("step", WHOLE_STEP, "RevGRU"): Goal(1.0),
}
"""Time of the reversible layer over that of torch's, on one thread and on two."""

SweptSize = Literal["steps", "hidden", "batch"]

SWEEP: dict[SweptSize, tuple[Shape, tuple[int, ...]]] = {
    "steps": (Shape(steps=20, batch=8, hidden=256), (20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)),
    "hidden": (Shape(steps=70, batch=20, hidden=128), (128, 256, 512, 1100)),
    "batch": (Shape(steps=200, batch=1, hidden=256), (1, 4, 16, 64)),
}
"""Where each size is varied by itself, and its values."""

LONGEST_OF_TWO = 2000
"""Most steps with two layers, which double the memory: one layer of nn.LSTM takes 1.4 GB at 10,000."""


def plan(*, quick: bool = False, sweep: bool = False) -> Iterator[SpeedCase]:
    """The cases of a run, those of a table together."""
    if sweep:
        for kind in ("layer", "step"):
            for shape in swept():
                yield SpeedCase(kind=kind, shape=shape, checkpointed=True, products=kind == "layer")
    elif quick:
        shapes = (*BARE_LAYERS[::2], ONE_ROW)
        yield from (SpeedCase(kind=kind, shape=shape) for kind in ("layer", "inference") for shape in shapes)
    else:
        for shape in (*BARE_LAYERS, ONE_ROW):
            long = shape.steps >= WORTH_CHECKPOINTS
            yield SpeedCase(kind="layer", shape=shape, checkpointed=long, products=True)
        yield from (SpeedCase(kind="inference", shape=shape) for shape in (*BARE_LAYERS, ONE_ROW))
        yield SpeedCase(kind="step", shape=WHOLE_STEP, checkpointed=True)


def swept() -> Iterator[Shape]:
    """The shapes of the sweep, with one layer and with two."""
    for layers in (1, 2):
        for axis, (base, values) in SWEEP.items():
            shapes = (dataclasses.replace(base, layers=layers, **{axis: value}) for value in values)
            yield from (shape for shape in shapes if layers == 1 or shape.steps <= LONGEST_OF_TWO)


def along(axis: SweptSize, shape: Shape) -> bool:
    """Whether a shape is one of those that differ in this size alone, and in the number of layers."""
    base, _ = SWEEP[axis]
    return dataclasses.replace(shape, layers=1, **{axis: getattr(base, axis)}) == base
