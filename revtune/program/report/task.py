"""The story of a tuned recipe's run, and what it shares with a translator's: the measurements of `tasks.loop`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from revtune.program import recipes
from revtune.program.files import read_bytes
from revtune.program.layers import REVERSIBLE
from revtune.program.report import metrics
from revtune.program.report.common import (
    draw_bits,
    draw_hypers,
    draw_memory,
    duration,
    environment,
    tell_followed,
)
from revtune.program.report.metrics import JsonObject, column, later
from revtune.program.report.settings import listed, repeating
from revtune.program.report.story import Axes, Line, Story
from revtune.program.runs.folder import HISTORY, command_line
from revtune.program.studies import tuned
from revtune.program.studies.json_files import Template, parsed
from revtune.program.tasks.live import measure

METHODS = {"delta": "tuned by Delta-STN", "stn": "tuned by STN", "plain": "at its starting values"}

REPLAYED = "at another run's values"

RESULT: Template = {"step": int, "valid": {"loss": float}, "test": {"loss": float}}


def story(folder: Path, name: str, *, accept_edits: bool = False) -> Story:
    """What the run of a recipe with a task in a folder tells; an edited one is shown as it is, as none of it is used.

    Raises:
        Problem: its settings are not of this version, or its result is damaged.
    """
    recipe, method, study = tuned.stored(folder)
    replays = tuned.replays(folder)
    quoted, tunes = recipes.find(recipe).task.measure, recipes.find(recipe).kind == "tuned"
    model = getattr(study, "model", None)
    told = Story(folder, name, f"{recipe}, {(REPLAYED if replays else METHODS[method]) if tunes else model}")
    lines, elapsed = validated(told, quoted)
    tune(told, lines, elapsed, perturbed=method != "plain")
    if replays:
        tell_followed(told)
    elif method == "plain":
        why = "a plain run stays at its starting values" if tunes else f"recipe {recipe} has no hyperparameters"
        told.note("hyperparameters", f"Nothing was tuned: {why}.")
    if model not in REVERSIBLE:
        what = "The network has no reversible layer" if model is None else f"nn.{model.upper()} has no buffer"
        told.note("bits", f"{what}: no bits are stored, and nothing is rewound.")
    elif not told.has("bits"):
        told.note("bits", "No bits were recorded: the run is of an earlier version, or each pass was a single chunk.")
    finish(told, quoted, study.learning.steps)
    told.note("samples", f"Nothing is written or translated by recipe {recipe}, which is judged by its {quoted}.")
    size = config["size"] if (config := listed(folder / "config.json")).get("size", "small") != "small" else ""
    words = ["train", recipe, *(["--size", size] if size else [])]
    words += ["--method", method] if tunes and method != "delta" else []
    words += ["--replay", str(folder)] if replays else []
    told.commands.insert(0, repeating(words, study, recipes.find(recipe).study(size or "small")))
    return told


def validated(told: Story, quoted: str) -> tuple[list[JsonObject], dict[float, float]]:
    """Draw losses, the quoted figure, speed, memory and bits; the measurements, and seconds by step."""
    lines, missing = metrics.read(told.folder / "metrics.jsonl")
    if missing:
        told.note("losses", missing)
    elapsed = dict(column(lines, "wall"))
    draw_losses(told, lines, elapsed)
    if quoted != "loss" and (points := column(lines, quoted)):
        told.draw(Axes("losses", f"Held-out {quoted}", quoted), Line("held-out", points, later(points, elapsed)))
    draw_speed(told, elapsed)
    draw_memory(told, lines, elapsed)
    draw_bits(told, lines, elapsed)
    if not lines and not missing:
        told.note("losses", "No validation yet, and so no loss.")
    return lines, elapsed


def draw_losses(told: Story, lines: list[JsonObject], elapsed: dict[float, float], label: str = "") -> None:
    """Draw the losses of both sets; `label` names a contestant."""
    axes = Axes("losses", "Loss", "nats")
    for key, what, look in (("train_loss", "training", "dash" if label else "line"), ("loss", "held-out", "dots")):
        points = column(lines, key)
        line: Any = {"look": look, "group": label}
        told.draw(axes, Line(f"{label}, {what}" if label else what, points, later(points, elapsed), **line))


def draw_speed(told: Story, elapsed: dict[float, float]) -> None:
    """Draw updates a second between validations."""
    times = sorted(elapsed.items())
    pairs = zip(times, times[1:], strict=False)
    speed = [(step, (step - before) / (now - then)) for (before, then), (step, now) in pairs if now > then]
    told.draw(Axes("costs", "Speed", "updates a second"), Line("speed", speed, later(speed, elapsed)))


def tune(told: Story, lines: list[JsonObject], elapsed: dict[float, float], *, perturbed: bool) -> None:
    """Draw the hyperparameters by the history, or at validations where there is none; `perturbed` as `draw_hypers`."""
    history, _ = metrics.read(told.folder / HISTORY) if (told.folder / HISTORY).exists() else ([], "")
    known = history or lines
    values = {name: column(known, "values", name) for name in metrics.names(known, "values")}
    scales = {name: column(known, "scales", name) for name in values}
    draw_hypers(told, values, scales, elapsed, perturbed=perturbed)


def finish(told: Story, quoted: str, steps: int) -> None:
    """Tell what the run came to, its settings, and what can be done with it; a run that is not finished says so."""
    folder, path = told.folder, told.folder / "result.json"
    lines, _ = metrics.read(folder / "metrics.jsonl")
    done = max((int(step) for step, _ in column(lines, "step")), default=0)
    told.facts["updates"] = f"{done:,} of {steps:,}"
    if path.exists():
        result = parsed(read_bytes(path), RESULT, path)
        told.facts |= {"best held-out": measure(quoted, result["valid"]), "at step": f"{result['step']:,}"}
        told.facts["test"] = measure(quoted, result["test"])
    elif losses := column(lines, "loss"):
        step, loss = min(losses, key=lambda point: point[1])
        told.facts |= {"best held-out": f"loss {loss:.4f}", "at step": f"{step:,}"}
    if elapsed := column(lines, "wall"):
        told.facts["time"] = duration(elapsed[-1][1])
    told.settings, told.environment = listed(folder / "config.json"), environment(folder)
    if not path.exists():
        told.note("losses", "The run has no result yet: it has not come to its end.")
        told.commands.append(command_line("train", "--resume", folder))
    told.commands.append(command_line("evaluate", folder))
