"""The story of the schedule experiment: one rate from several starts, beside fixed and moving ones."""

from __future__ import annotations

from pathlib import Path

from revtune.program.files import read_bytes
from revtune.program.recipes import output_dropout as recipe
from revtune.program.recipes.output_dropout import NAME, OutputDropoutStudy
from revtune.program.report import metrics
from revtune.program.report.common import of_results, undamaged
from revtune.program.report.metrics import column, later
from revtune.program.report.settings import listed, repeating
from revtune.program.report.story import Axes, Line, Story, Table
from revtune.program.report.task import draw_losses
from revtune.program.runs.folder import command_line
from revtune.program.studies.json_files import Template, parsed
from revtune.program.studies.output_dropout.experiment import stored
from revtune.program.studies.output_dropout.results import HEADINGS, cells, label, title, verdicts

RESULTS: Template = {"method": str, "updates": int, "best_rate": float, "rows": list}

RATE = Axes("hyperparameters", NAME, "value")


def story(folder: Path, name: str) -> Story:
    """What the experiment in a folder tells; it is shown as it is, as nothing of it is used.

    Raises:
        Problem: its settings are not of this version, or its results are damaged.
    """
    study = stored(folder)
    told = Story(folder, name, "schedule experiment", many=True)
    told.settings = listed(folder / "config.json")
    told.commands = [repeating(["train", "output_dropout"], study, recipe.recipe())]
    if (path := folder / "results.json").exists():
        finished(told, path)
    else:
        told.environment = {"environment": "not recorded: the experiment writes it at its end"}
        told.note("losses", "The experiment has no results yet; what it has come to so far is shown.")
        told.commands.append(command_line("train", "--resume", folder))
    draw_folders(told, study)
    for section, what in (("losses", "Losses"), ("hyperparameters", "Schedules")):
        if not any(axes.section == section for axes, _ in told.lines):
            told.note(section, f"{what} over time are missing: the contestants' own folders are not there.")  # type: ignore[arg-type]
    told.note("hyperparameters", "Perturbation scales are missing: the experiment's results do not have them.")
    told.note("bits", "The layers are torch's own, which have no buffer.")
    told.note("costs", "Speed and memory are missing: the experiment's results do not have them.")
    told.note("samples", "Nothing is written by the experiment, which is judged by its perplexity.")
    return told


def finished(told: Story, path: Path) -> None:
    """Draw the schedules of all results, with their table and what it says.

    Raises:
        Problem: they are damaged.
    """
    results = parsed(read_bytes(path), RESULTS, path)
    with undamaged(path):
        for row in results["rows"]:
            points = [(float(step), float(rate)) for step, rate in row.get("schedule", [])]
            told.draw(RATE, Line(label(results, row["contestant"]), points))
        told.tables.append(Table("losses", title(results), HEADINGS, cells(results)))
        for line in verdicts(results):
            told.note("losses", f"{line}.")
        best = min(results["rows"], key=lambda row: row["valid"]["loss"])
        said = f"perplexity {best['valid']['perplexity']:.2f}, {label(results, best['contestant'])}"
        told.facts = {"contestants": str(len(results["rows"])), "best held-out": said}
    told.environment = of_results(results)


def draw_folders(told: Story, study: OutputDropoutStudy) -> None:
    """Draw what the contestants' own folders know: losses, and schedules where there is no result."""
    known = any(axes == RATE for axes, _ in told.lines)
    for contestant in study.contestants():
        lines = metrics.read(told.folder / contestant / "metrics.jsonl")[0]
        elapsed = dict(column(lines, "wall"))
        draw_losses(told, lines, elapsed, contestant)
        if not known and contestant.startswith("tuned-"):
            points = column(lines, "values", NAME)
            told.draw(RATE, Line(contestant, points, later(points, elapsed)))
