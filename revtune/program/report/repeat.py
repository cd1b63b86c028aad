"""The story of the repeat study: what its nets say right, by length and by step."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from revtune.program.files import read_bytes
from revtune.program.recipes import repeat as recipe
from revtune.program.report import metrics
from revtune.program.report.common import of_results, undamaged
from revtune.program.report.metrics import JsonObject
from revtune.program.report.settings import listed, repeating
from revtune.program.report.story import Axes, Line, Story, Table
from revtune.program.runs.folder import command_line
from revtune.program.studies.json_files import parsed
from revtune.program.studies.repeat.results import rows, summary, title
from revtune.program.studies.repeat.study import SEALS, stored
from revtune.program.tasks.repeat import MODELS, RepeatStudy


def story(folder: Path, name: str) -> Story:
    """What the repeat study in a folder tells; it is shown as it is, as nothing of it is used.

    Raises:
        Problem: its settings are not of this version, or a cell is damaged.
    """
    study = stored(folder)
    told = Story(folder, name, "repeat study", many=True)
    lines, lacking = metrics.read(folder / "cells.jsonl")
    cells = [{key: value for key, value in line.items() if key != SEALS} for line in lines]
    if lacking:
        told.note("losses", lacking)
    with undamaged(folder / "cells.jsonl"):
        draw(told, study, cells)
    wanted = len(list(study.cells()))
    told.facts = {"cells": f"{len(cells)} of {wanted}", "updates": f"at most {study.updates:,} each"}
    told.settings, told.environment = listed(folder / "config.json"), {"environment": "not recorded"}
    if (path := folder / "results.json").exists():
        told.environment = of_results(parsed(read_bytes(path), {}, path))
    told.commands = [repeating(["train", "repeat"], study, recipe.recipe())]
    if len(cells) < wanted:
        told.commands.append(command_line("train", "--resume", folder))
    told.note("hyperparameters", "Nothing was tuned.")
    told.note(
        "bits", f"Reversible nets forget at most {study.max_forget_bits:g} bits a unit and step, NF nets nothing."
    )
    told.note("costs", "Speed and memory are missing: the study records none.")
    return told


def draw(told: Story, study: RepeatStudy, cells: list[JsonObject]) -> None:
    """Draw shares of tokens said right, and the table."""
    by_length = Axes("losses", "Repeated right, by length", "% of tokens", "length of the sequences", log_x=True)
    longest = max(study.lengths)
    by_step = Axes("losses", f"Repeated right, by step at length {longest}", "% of tokens", "step of the sequence")
    for model in MODELS:
        entries = [entry for entry in summary(study, cells) if entry["model"] == model]
        points = [(entry["steps"], 100 * entry["right"]) for entry in entries]
        told.draw(by_length, Line(model, points, look="dots"))
        shares = [cell["by_step"] for cell in cells if cell["model"] == model and cell["steps"] == longest]
        means = [100 * fmean(right) for right in zip(*shares, strict=True)]
        told.draw(by_step, Line(model, list(enumerate(means, 2))))
    told.tables.append(Table("losses", title(study), ["length", *map(str, study.lengths)], rows(study, cells)))
