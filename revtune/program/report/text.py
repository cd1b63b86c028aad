"""The story of a language model's run."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from revtune.program import recipes
from revtune.program.errors import Problem
from revtune.program.files import read_text
from revtune.program.language import regularizers, sample
from revtune.program.language.config import RATES, Config
from revtune.program.language.live import measure
from revtune.program.language.run import Run
from revtune.program.layers import REVERSIBLE
from revtune.program.report import metrics
from revtune.program.report.common import (
    RATE,
    draw_bits,
    draw_hypers,
    draw_memory,
    duration,
    environment,
    tell_followed,
)
from revtune.program.report.metrics import JsonObject, Points, column, later, smoothed
from revtune.program.report.settings import listed, repeating
from revtune.program.report.story import Axes, Line, Sample, Story
from revtune.program.runs.folder import command_line


def story(folder: Path, name: str, *, accept_edits: bool = False) -> Story:
    """What the run of a language model in a folder tells.

    Raises:
        Problem: its settings are not of this version.
    """
    run = Run(folder, accept_edits=accept_edits)
    config = run.config()
    told = Story(folder, name, f"language model, {config.net.model}")
    lines, missing = metrics.read(run.metrics)
    steps = [line for line in lines if "loss" in line]
    valids = [line for line in lines if "valid_loss" in line]
    if missing:
        told.note("losses", missing)
    elapsed = passed(steps)
    draw_losses(told, config, steps, valids, elapsed)
    draw_costs(told, steps, elapsed)
    draw_bits(told, steps, elapsed)
    if config.net.model not in REVERSIBLE:
        told.note("bits", f"nn.{config.net.model.upper()} has no buffer: it keeps every state, 32 bits each.")
    elif not told.has("bits"):
        told.note(
            "bits", "No bits were recorded: the last chunk of a pass stores none, and passes here are of one chunk."
        )
    draw_tuned(told, run, valids, elapsed)
    if config.replays:
        tell_followed(told)
    elif config.tune == "off":
        told.note("hyperparameters", "Nothing was tuned: dropout rates stayed as the configuration has them.")
    told.facts = facts(config, steps, valids, elapsed)
    add_sample(told, run, config)
    told.settings, told.environment = listed(folder / "config.json"), environment(folder)
    told.commands = commands(folder, config, finished=bool(steps) and steps[-1]["step"] >= config.learning.steps)
    return told


def passed(steps: list[JsonObject]) -> dict[float, float]:
    """Seconds of training after each step; nothing where a step does not know its own."""
    if not all(metrics.is_number(line.get("seconds")) for line in steps):
        return {}
    return dict(zip((line["step"] for line in steps), accumulate(line["seconds"] for line in steps), strict=True))


def draw_losses(
    told: Story, config: Config, steps: list[JsonObject], valids: list[JsonObject], elapsed: dict[float, float]
) -> None:  # fmt: skip
    """Draw the losses on training and on held-out text."""
    axes = Axes("losses", "Loss", f"nats a {config.text.unit}")
    each = column(steps, "loss")
    seconds = later(each, elapsed)
    told.draw(axes, Line("training, each step", each, seconds, look="faint", group="training"))
    told.draw(axes, Line("training", smoothed(each), seconds))
    points = column(valids, "valid_loss")
    told.draw(axes, Line("held-out", points, later(points, elapsed), look="dots"))
    tuned_on = smoothed(column(steps, "held_out_loss"))
    told.draw(axes, Line("tuned on", tuned_on, later(tuned_on, elapsed), look="dot"))
    if not points:
        told.note("losses", f"No held-out loss yet: the first validation is at step {config.learning.valid_every}.")


def draw_costs(told: Story, steps: list[JsonObject], elapsed: dict[float, float]) -> None:
    """Draw learning rate, speed and memory."""
    rates = column(steps, "lr")
    told.draw(RATE, Line("learning rate", rates, later(rates, elapsed)))
    timed = [line for line in steps if metrics.is_number(line.get("tokens")) and line.get("seconds")]
    speed = smoothed([(line["step"], line["tokens"] / line["seconds"]) for line in timed])
    told.draw(Axes("costs", "Speed", "tokens a second"), Line("speed", speed, later(speed, elapsed)))
    draw_memory(told, steps, elapsed)


def draw_tuned(told: Story, run: Run, valids: list[JsonObject], elapsed: dict[float, float]) -> None:
    """Draw the hyperparameters' values by the schedule, or at validations where there is none."""
    values = {name: column(valids, "values", name) for name in metrics.names(valids, "values")}
    scales = {name: column(valids, "scales", name) for name in values}
    config = run.config()
    # of a schedule that is followed, validations show how much of it has been
    known = values if config.replays else {**values, **scheduled(run, values)}
    draw_hypers(told, known, scales, elapsed, perturbed=config.tune != "off")


def scheduled(run: Run, at_validations: dict[str, Points]) -> dict[str, Points]:
    """All values of hyperparameters, by option, as far as the schedule has them."""
    try:
        found = json.loads(read_text(run.schedule)) if run.schedule.exists() else {}
        by_option: dict[str, Any] = regularizers.by_option(found.get("values", {}))
        return {
            name: list(zip(found["steps"], by_option[name], strict=True))
            for name in at_validations
            if name in by_option and all(map(metrics.is_number, by_option[name]))
        }
    except (Problem, AttributeError, KeyError, TypeError, ValueError):
        return {}  # what validations know is shown then


def facts(
    config: Config, steps: list[JsonObject], valids: list[JsonObject], elapsed: dict[float, float]
) -> dict[str, str]:  # fmt: skip
    """What the run came to."""
    found = {"updates": f"{steps[-1]['step'] if steps else 0:,} of {config.learning.steps:,}"}
    if points := column(valids, "valid_loss"):
        step, loss = min(points, key=lambda point: point[1])
        found |= {"best held-out": measure(config.text.unit, loss), "at step": f"{step:,}"}
    if elapsed:
        found["time"] = duration(max(elapsed.values()))
    if stored := [value for _, value in column(steps, "stored_bits")]:
        found["bits a unit and step"] = f"{sum(stored) / len(stored):.2f}"
    return found


def add_sample(told: Story, run: Run, config: Config) -> None:
    """Have the best weights write, or say why there is no sample."""
    unit = config.text.unit
    try:
        title = f"{sample.SHOWN[unit]} {unit}s at temperature 0.7, seed 1"
        told.samples.append(Sample(title, sample.shown(run.model(), run.vocabulary())))
    except Problem as error:
        told.note("samples", f"No sample: {error}.")


def commands(folder: Path, config: Config, *, finished: bool) -> list[str]:
    """Those that repeat the run, go on with it or use it."""
    size = [] if config.size == "small" else ["--size", config.size]
    default = recipes.find(config.recipe).recipe(config.size)
    follows = ["--replay", str(folder)] if config.replays else []
    if config.replays:  # no rate is given beside what is followed
        rates: Any = {name: getattr(default.net, name) for name in RATES.split()}
        config = replace(config, net=replace(config.net, **rates))
    found = [repeating(["train", config.recipe, *size, *follows], config, default)]
    if not finished:
        found.append(command_line("train", "--resume", folder))
    return [*found, command_line("evaluate", folder), command_line("generate", folder)]
