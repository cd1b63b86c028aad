"""The story of a contest: its contestants side by side, at every seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from revtune.program import recipes
from revtune.program.errors import Problem
from revtune.program.files import read_bytes
from revtune.program.report import metrics
from revtune.program.report.common import SCALE, draw_bits, draw_memory, of_results, undamaged
from revtune.program.report.metrics import JsonObject, Points, column, later
from revtune.program.report.settings import listed, repeating
from revtune.program.report.story import Axes, Line, Story, Table
from revtune.program.runs.folder import HISTORY, command_line
from revtune.program.studies.compare.contest import CONFIG, CONTESTANTS, NAMES, VALIDATION, Options
from revtune.program.studies.compare.curves import curve
from revtune.program.studies.compare.population import PopulationSettings
from revtune.program.studies.compare.study import study_of
from revtune.program.studies.compare.table import cells, headings, title, verdicts
from revtune.program.studies.json_files import Template, missing, parsed
from revtune.program.typed import read_typed, reason

RESULTS: Template = {"recipe": str, "budget": float, "clock": str, "quoted": str, "rows": list}

CLOCKS = {"wall": "seconds", "cpu": "seconds of the processor"}


def story(folder: Path, name: str) -> Story:
    """What the contest in a folder tells; it is shown as it is, as nothing of it is used.

    Raises:
        Problem: its settings are not of this version, or its results are damaged.
    """
    path = folder / "config.json"
    settings = parsed(read_bytes(path), CONFIG, path)
    recipe, clock = settings["recipe"], str(settings.get("clock", "wall"))
    told = Story(folder, name, f"contest on {recipe}", many=True)
    told.settings = listed(path)
    told.commands = [again(settings, path)]
    if (path := folder / "results.json").exists():
        finished(told, path)
    else:
        told.note("losses", "The contest has no results yet; what its contestants have come to so far is shown.")
        told.environment = {"environment": "not recorded: a contest writes it at its end"}
        told.commands.append(f"{told.commands[0]} {command_line('--out', folder).partition(' ')[2]}")
    draw_folders(told, clock, curves=not path.exists())
    if not told.has("hyperparameters"):
        told.note("hyperparameters", "Schedules are missing: the contestants' own folders are not there.")
    if not told.has("bits"):
        told.note("bits", "No bits were recorded: no contestant rewinds, or its own folder is not there.")
    told.note("samples", f"Nothing is written or translated by recipe {recipe}.")
    return told


def finished(told: Story, path: Path) -> None:
    """Draw the curves of all results, with their table and what it says.

    Raises:
        Problem: they are damaged.
    """
    results = parsed(read_bytes(path), RESULTS, path)
    with undamaged(path):
        axes = losses(results["clock"])
        for row in results["rows"]:
            for run in row["runs"]:
                points = held(curve_of(run["curve"]), run[results["clock"]])
                told.draw(axes, contestants_line(row["contestant"], run["seed"], points))
        told.tables.append(Table("losses", title(results), headings(results), cells(results, 4)))
        for line in verdicts(results):
            told.note("losses", f"{line}.")
        told.facts["contestants"] = str(len(results["rows"]))
        told.facts["seeds"] = str(max((len(row["runs"]) for row in results["rows"]), default=0))
        told.facts["budget"] = f"{results['budget']:g} {CLOCKS[results['clock']]}"
        rows = [(min(run["valid"]["loss"] for run in row["runs"]), NAMES[row["contestant"]]) for row in results["rows"]]
        if rows:
            told.facts["best held-out"] = f"loss {min(rows)[0]:.4f}, {min(rows)[1]}"
    told.environment = of_results(results)


def losses(clock: str) -> Axes:
    """The chart of all contestants."""
    return Axes("losses", "Best held-out loss so far", "nats", CLOCKS[clock], log_x=True, clip=True)


def curve_of(stored: Any) -> Points:
    """A stored curve as points."""
    return [(float(when), float(loss)) for when, loss in stored]


def held(points: Points, end: float) -> Points:
    """A curve with its last value held to the end of its run."""
    return [*points, (end, points[-1][1])] if points and end > points[-1][0] else points


def contestants_line(contestant: str, seed: object, points: Points) -> Line:
    """A contestant's line, in its colour at every seed."""
    name = NAMES.get(contestant, contestant)
    return Line(f"{name}, seed {seed}", points, look="steps", group=name)


def draw_folders(told: Story, clock: str, *, curves: bool) -> None:
    """Draw what the contestants' own folders know: schedules, bits and memory, and losses where there is no result.

    Args:
        told: the story.
        clock: whose seconds count.
        curves: whether to draw losses too.
    """
    for place in sorted(told.folder.glob("seed-*/*/")):
        if place.name not in CONTESTANTS:
            continue  # an earlier run, set aside
        seed = place.parent.name.removeprefix("seed-")
        lines = metrics.read(place / "metrics.jsonl")[0]
        if curves:
            whole = [line for line in lines if missing(line, VALIDATION) is None]
            told.draw(losses(clock), contestants_line(place.name, seed, curve(whole, clock)))
        draw_tuned(told, place, f"{NAMES[place.name]}, seed {seed}", lines, clock)


def draw_tuned(told: Story, place: Path, label: str, lines: list[JsonObject], clock: str) -> None:
    """Draw a contestant's hyperparameters, where they move, with what it stored and held."""
    elapsed, own = dict(column(lines, clock)), Story(place, label, "")
    draw_bits(own, lines, elapsed)
    draw_memory(own, lines if (place / HISTORY).exists() else [], elapsed)
    for axes, line in own.lines:
        told.draw(axes, Line(f"{label}, {line.label}", line.points, line.seconds, line.look, group=label))
    history = metrics.read(place / HISTORY)[0] if (place / HISTORY).exists() else []
    for name in metrics.names(history, "values"):
        axes = Axes("hyperparameters", name, "value", second=SCALE)
        for key, look, on_second in (("values", "line", False), ("scales", "dot", True)):
            points = column(history, key, name)
            what: Any = {"look": look, "group": label, "on_second": on_second}
            told.draw(axes, Line(f"{label}, {key[:-1]}", points, later(points, elapsed), **what))


def again(settings: JsonObject, path: Path) -> str:
    """The command that repeats a contest.

    Raises:
        Problem: its settings are not of this version.
    """
    try:
        recipe, size = settings["recipe"], settings.get("size", "small")
        usual = study_of(recipes.find(recipe), size)
        kept = {name: settings[name] for name in ("seeds", "budget", "clock") if name in settings}
        given: Options[Any] = Options(
            study=read_typed(type(usual), settings["study"]), contestants=tuple(settings["contestants"]), size=size,
            pbt=read_typed(PopulationSettings, settings.get("pbt", {})), **kept,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise Problem(f"{path} is no configuration of a contest of this revtune: {reason(error)}") from error
    words = ["compare", recipe, *([] if size == "small" else ["--size", size])]
    return repeating(words, given, Options(study=usual, size=size))
