"""Ten shapes of real work: who reads how long a signal, and what its head is taught.

Shapes: T steps, B rows, I features, H units, O numbers that the head gives.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor

from revtune.program.bench.contestants import Shape
from revtune.program.signals.losses import Loss, classes, notes, policy, values
from revtune.program.signals.net import At

Wanted = Literal["classes", "values", "notes", "policy"]
"""What a head is taught: one class of several, a number, which notes sound, or actions and their value."""


@dataclass(frozen=True)
class RealTask:
    """The shape of a training step as somebody has it.

    Attributes:
        name: what tables call it.
        steps, rows, inputs, hidden, outputs: T, B, I, H, O.
        wanted: what the head is taught.
        at: where.
        episode: steps between two beginnings of a row, on average; 0 for rows that go on.
    """

    name: str
    steps: int
    rows: int
    inputs: int
    hidden: int
    outputs: int
    wanted: Wanted
    _: KW_ONLY
    at: At = "step"
    episode: int = 0

    @property
    def shape(self) -> Shape:
        """Its sizes, as the other benchmarks take them."""
        return Shape(steps=self.steps, batch=self.rows, hidden=self.hidden, inputs=self.inputs)


TASKS = (
    RealTask("sequential MNIST", 784, 128, 1, 128, 10, "classes", at="end"),
    RealTask("hydrology, daily", 365, 256, 32, 256, 1, "values", at="end"),
    RealTask("hydrology, hourly", 8_760, 32, 32, 128, 1, "values"),
    RealTask("appliances", 1_460, 50, 28, 128, 1, "values"),
    RealTask("speech", 4_096, 16, 1, 128, 10, "classes", at="end"),
    RealTask("speech, the longest", 18_262, 16, 1, 128, 10, "classes", at="end"),
    RealTask("music", 4_273, 8, 88, 200, 88, "notes"),
    RealTask("ECG, three minutes", 65_000, 1, 1, 64, 3, "classes"),
    RealTask("ECG, half an hour", 650_000, 1, 1, 64, 3, "classes"),
    RealTask("recurrent policy", 512, 2_048, 16, 128, 5, "policy", episode=50),
)
"""Hydrology reads forcings and attributes of basins, appliances weather and rooms; a policy has four actions."""

LOSSES: dict[Wanted, Loss] = {"classes": classes, "values": values, "notes": notes, "policy": policy}
"""What each teaches by."""

Given = tuple[Tensor, Tensor, Tensor | None]
"""The signal, targets, and where rows begin anew."""


def drawn(task: RealTask, *, resets: bool) -> Given:
    """A random signal and targets; with beginnings of rows where the task has them and they are asked for."""
    x = torch.randn(task.steps, task.rows, task.inputs)
    at = (task.rows,) if task.at == "end" else (task.steps, task.rows)
    anew = torch.rand(task.steps, task.rows) < 1 / task.episode if resets and task.episode else None
    if task.wanted == "classes":
        return x, torch.randint(task.outputs, at), anew
    if task.wanted == "notes":
        return x, torch.rand(*at, task.outputs).lt(0.05).to(torch.uint8), anew
    if task.wanted == "values":
        return x, torch.randn(at), anew
    y = torch.randn(*at, 4)
    y[..., 0] = torch.randint(task.outputs - 1, at)
    return x, y, anew


def first(task: RealTask, given: Given, steps: int) -> Given:
    """The first steps of what a task is given."""
    x, y, resets = given
    return x[:steps], y if task.at == "end" else y[:steps], None if resets is None else resets[:steps]
