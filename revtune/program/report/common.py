"""What stories of all kinds are made of: the environment of a run, its measurements, and its hyperparameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from revtune.program.errors import Problem
from revtune.program.files import read_text
from revtune.program.machine import versions
from revtune.program.report import metrics
from revtune.program.report.metrics import JsonObject, Points, column, later
from revtune.program.report.story import Axes, Line, Story
from revtune.program.runs import checkpoint
from revtune.program.runs.folder import ENVIRONMENT, REPLAYED
from revtune.program.runs.followed import read, whose
from revtune.program.typed import reason

BITS = Axes("bits", "Bits stored by layer", "bits a unit and step")

RATE = Axes("costs", "Learning rate", "learning rate")

MEMORY = Axes("costs", "Memory of the process", "MiB")

SCALE = "scale of perturbations"


@contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Within this block figures of a file are told, which may lack some.

    Raises:
        Problem: they do.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise Problem(f"{path} is damaged: {reason(error)}") from error


def environment(folder: Path) -> dict[str, str]:
    """What the run in a folder began in and computed by, as far as it is written down; else a sentence."""
    found: dict[str, str] = {}
    try:
        if (path := folder / ENVIRONMENT).exists():
            found |= {str(name): str(value) for name, value in json.loads(read_text(path)).items()}
        if (path := folder / "checkpoint.safetensors").exists():
            found |= {str(name): str(value) for name, value in checkpoint.read_facts(path).facts["arithmetic"].items()}
    except (Problem, AttributeError, KeyError, TypeError, ValueError):
        pass  # told below, where nothing is found
    return found or {"environment": "not recorded: the run is of an earlier version, or its checkpoint is not there"}


def of_results(results: JsonObject) -> dict[str, str]:
    """The versions that a study wrote beside its figures."""
    return {name: str(results[name]) for name in versions() if name in results}


def draw_bits(story: Story, lines: list[JsonObject], elapsed: dict[float, float]) -> None:
    """Draw the bits that each layer stored, or all of them together, or say that nothing is known of them."""
    layers = metrics.names(lines, "layer_bits")
    for layer in layers:
        points = column(lines, "layer_bits", layer)
        story.draw(BITS, Line(layer, points, later(points, elapsed), look="dots" if len(points) < 40 else "line"))
    if not layers and (points := column(lines, "stored_bits")):
        story.draw(BITS, Line("all layers", points, later(points, elapsed)))
        story.note("bits", "The run is of an earlier version, which recorded the bits of all layers together.")


def draw_memory(story: Story, lines: list[JsonObject], elapsed: dict[float, float]) -> None:
    """Draw what the process held, or say that it is not recorded."""
    points = [(step, value / 2**20) for step, value in column(lines, "resident_bytes")]
    story.draw(MEMORY, Line("memory", points, later(points, elapsed)))
    if lines and not points:
        story.note("costs", "Memory is missing: the run is of an earlier version, which did not record it.")


def draw_hypers(
    story: Story, values: dict[str, Points], scales: dict[str, Points], elapsed: dict[float, float], *, perturbed: bool
) -> None:  # fmt: skip
    """Draw a chart for each hyperparameter: its values, and the scale of its perturbations on an axis of its own.

    Args:
        story: the run's.
        values, scales: by hyperparameter.
        elapsed: seconds by step.
        perturbed: whether they are, as where a run tunes them.
    """
    for name, points in values.items():
        axes = Axes("hyperparameters", name, "value", second=SCALE)
        story.draw(axes, Line("value", points, later(points, elapsed)))
        scale = scales.get(name, [])
        story.draw(axes, Line("scale", scale, later(scale, elapsed), look="dot", on_second=True))
    if perturbed and values and not any(scales.values()):
        story.note("hyperparameters", "Perturbation scales are missing: they are not recorded here.")


def tell_followed(story: Story) -> None:
    """Say whose hyperparameters a run follows that tunes nothing itself."""
    try:
        what = f"the run follows {whose(read(story.folder / REPLAYED))}, which {REPLAYED} keeps"
    except Problem as error:
        what = f"the run follows another, and what it follows is missing: {error}"
    story.note("hyperparameters", f"Nothing was tuned: {what}.")


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
