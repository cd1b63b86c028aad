"""The schedule experiment as it runs: contestant after contestant, each in its own folder, then table and plot.

    config.json                  the study
    <contestant>/                as `tasks.loop` tells
    results.json                 figures of all
    table.md, output_dropout.png to read and to see

Started again in its folder, it goes on where it stopped, bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from revtune.program.errors import Problem
from revtune.program.files import read_text, write
from revtune.program.machine import versions
from revtune.program.recipes.output_dropout import NAME, OutputDropout, OutputDropoutStudy
from revtune.program.runs.folder import HISTORY, command_line, made_folder
from revtune.program.runs.places import near
from revtune.program.runs.seals import RUN, Seals
from revtune.program.studies.json_files import JsonObject, Template, read_lines, read_object
from revtune.program.studies.output_dropout.contestants import (
    Schedule,
    check,
    fixed,
    noisy,
    replayed,
    scheduled,
    sinusoid,
)
from revtune.program.studies.output_dropout.results import markdown, plot, table, title, verdicts
from revtune.program.tasks.learner import Learner
from revtune.program.tasks.live import measure
from revtune.program.tasks.loop import TaskRun, check_result, data_of
from revtune.program.tasks.task import with_absolute_paths, with_place
from revtune.program.tasks.tuned_learner import TunedLearner
from revtune.program.typed import read_typed, reason, told_of

RECIPE = "output_dropout"

FIGURES: Template = {"loss": float, "perplexity": float}

RESULT: Template = {"step": int, "valid": FIGURES, "test": FIGURES, "final_values": {NAME: float}}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Tune the output dropout of a language model from five starts, and compare fixed rates and schedules with it."""

    study: Annotated[OutputDropoutStudy, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the experiment; one that holds it is resumed. By default the next free runs/output_dropout-<n>."""
    full: bool = False
    """The settings of the paper: days instead of half an hour."""


@dataclass(frozen=True)
class Experiment:
    """The experiment in its folder.

    Attributes:
        study: what it compares.
        folder: where it is kept.
        accept_edits: whether its files are taken as they are, though they were edited.
    """

    study: OutputDropoutStudy
    folder: Path
    accept_edits: bool = False

    def seals(self, name: str, *files: str) -> Seals:
        """The digests of the configuration, and of files of a contestant, as they are now."""
        own = Seals.of(self.folder / name, ("../config.json", *files), accept_edits=self.accept_edits)
        return replace(own, digests={**own.digests, RUN: name})

    def result(self, name: str) -> JsonObject | None:
        """What a contestant came to, if it has come to its end."""
        path = self.folder / name / "result.json"
        if not path.exists():
            return None
        result = read_object(path, RESULT)
        check_result(path.parent, result, self.seals(name, HISTORY))
        return result

    def history(self, name: str) -> list[JsonObject]:
        """All steps of a tuned contestant's rate."""
        return read_lines(self.folder / name / HISTORY, {"step": int, "values": {NAME: float}})

    def best_rate(self) -> float:
        """The fixed rate of the lowest held-out loss."""
        results = {rate: self.result(f"fixed-{rate}") for rate in self.study.rates}
        return min((result["valid"]["loss"], rate) for rate, result in results.items() if result is not None)[1]

    def schedule(self, name: str) -> Schedule:
        """The rates of a contestant that is not tuned, once those contestants are done that they depend on."""
        study, first = self.study, f"tuned-{self.study.starts[0]}"
        kind, _, rate = name.partition("-")
        if kind == "fixed":
            return fixed(float(rate))
        if kind == "noisy":
            return noisy(self.best_rate(), study.deviation, study.seed)
        if kind == "sinusoid":
            return sinusoid(self.best_rate(), study.amplitude, study.period)
        schedule = replayed(study.starts[0], self.history(first))
        return schedule if kind == "replayed" else fixed(schedule(study.learning.steps))

    def learner(self, task: OutputDropout, name: str) -> Learner:
        """What a contestant learns by."""
        kind, _, rate = name.partition("-")
        if kind == "tuned":
            return TunedLearner(OutputDropout(self.study, task.corpus, float(rate)), self.study.method)
        return scheduled(task, self.schedule(name))


def start(name: str, options: Options) -> Path:
    """Run the experiment, or what is left of it in the folder that the options name; its folder."""
    assert name == RECIPE
    return run(options.study, options.out)


def run(study: OutputDropoutStudy, out: Path | None, *, accept_edits: bool = False) -> Path:
    """Have all contestants learn whose results `out` does not hold, then write figures, table and plot there.

    Args:
        study: what to compare.
        out: folder of the experiment; by default the next free `runs/output_dropout-<n>`.
        accept_edits: whether files in it are taken as they are, though they were edited.

    Returns:
        The folder.

    Raises:
        Problem: a setting is impossible, the folder holds another study, the data are missing, or it was asked to stop.
    """
    study = with_absolute_paths(study)
    check(study)
    task, console = OutputDropout.as_learnt(study, data(study, out)), Console(highlight=False)
    experiment = Experiment(study, folder_of(study, out), accept_edits)
    torch.set_num_threads(study.threads)
    with Report(console, study).shown() as report:
        for name in study.contestants():
            if experiment.result(name) is None:
                report.begins(name)
                report.through(learned(experiment, task, name, report))
    finish(experiment, console)
    return experiment.folder


def resume(folder: Path, *, accept_edits: bool = False, data: Path | None = None) -> Path:
    """Go on with the experiment in a folder; `data` is the folder with data sets, where that has been moved."""
    return run(with_place(stored(folder), folder, data), folder, accept_edits=accept_edits)


def data(study: OutputDropoutStudy, out: Path | None) -> str | None:
    """The digest of the data that the experiment in a folder learns from, as far as one of its runs knows it."""
    digests = (data_of(out / name) for name in study.contestants()) if out is not None else ()
    return next(filter(None, digests), None)


def learned(experiment: Experiment, task: OutputDropout, name: str, report: Report) -> JsonObject:
    """Have a contestant learn, or go on; what it came to."""
    folder, steps = experiment.folder / name, experiment.study.learning.steps
    folder.mkdir(exist_ok=True)
    command = command_line("train", "--resume", experiment.folder)
    learner, seals = experiment.learner(task, name), experiment.seals(name)
    with contextlib.closing(TaskRun(learner, folder, command, seals)) as task_run:
        task_run.learn(lambda learner, clock: learner.steps >= steps, report)
        return task_run.result()


class Report:
    """Shows the experiment on the way: a bar on a terminal, a line a contestant.

    Args:
        console: where to.
        study: whose number of updates the bar counts.
    """

    def __init__(self, console: Console, study: OutputDropoutStudy) -> None:
        self.console, self.steps, self.name = console, study.learning.steps, ""
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)

    @contextlib.contextmanager
    def shown(self) -> Any:
        """Keep the bar on the terminal."""
        with self.bar:
            yield self

    def begins(self, name: str) -> None:
        """Show which contestant learns now."""
        self.name, self.task = name, self.bar.add_task(name, total=self.steps)

    def step(self, facts: JsonObject) -> None:
        """Take in a step."""
        self.bar.update(self.task, completed=facts["step"])

    def valid(self, facts: JsonObject) -> None:
        """Take in a validation, of which the bar shows nothing."""

    def through(self, facts: JsonObject) -> None:
        """Say what it came to."""
        self.bar.remove_task(self.task)
        figures = f"held-out {measure('perplexity', facts['valid'])}, test {measure('perplexity', facts['test'])}"
        rate = facts["final_values"][NAME]
        self.console.print(f"{self.name}: {figures}, rate {rate:.3g} at the end", markup=False, soft_wrap=True)


def stored(folder: Path) -> OutputDropoutStudy:
    """The study that a folder holds.

    Raises:
        Problem: it holds none of this version.
    """
    path = folder / "config.json"
    try:
        facts = json.loads(read_text(path))
        if facts["recipe"] != RECIPE:
            raise ValueError("it is another recipe's")
        study = read_typed(OutputDropoutStudy, facts["study"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise Problem(f"{path} is no configuration of the {RECIPE} experiment: {reason(error)}") from error
    with told_of(path):
        check(study)
    return study


def folder_of(study: OutputDropoutStudy, out: Path | None) -> Path:
    """The experiment's folder, its configuration in it; one that holds the same already is resumed."""
    if out is not None and (out / "config.json").exists():
        if dataclasses.replace(stored(out), data=study.data) != study:
            raise Problem(f"{out} holds an experiment with other settings; give another --out")
        return out
    folder = made_folder(RECIPE, out)
    facts = {"recipe": RECIPE, "study": dataclasses.asdict(study), **near(folder, data=study.data)}
    write(folder / "config.json", json.dumps(facts, indent=1, default=str).encode() + b"\n")
    return folder


def finish(experiment: Experiment, console: Console) -> None:
    """Write figures, table and plot, and print the table."""
    results = figures(experiment)
    write(experiment.folder / "results.json", json.dumps(results, indent=1).encode() + b"\n")
    write(experiment.folder / "table.md", markdown(results).encode())
    write(experiment.folder / f"{RECIPE}.png", plot(results))
    console.print(f"\n{title(results)}", markup=False, soft_wrap=True)
    console.print(table(results))
    for line in verdicts(results):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"\nFigures, table and plot are in {experiment.folder}", markup=False, soft_wrap=True)


def figures(experiment: Experiment) -> JsonObject:
    """All that is told of an experiment, as JSON has it."""
    study, rows = experiment.study, list[JsonObject]()
    for name in study.contestants():
        result = experiment.result(name)
        assert result is not None
        kind, _, rate = name.partition("-")
        row = {"contestant": name, **result}
        if kind == "tuned":
            steps = [(record["step"], record["values"][NAME]) for record in experiment.history(name)]
            row["schedule"] = [(0, float(rate)), *steps]
        rows.append(row)
    facts = {"method": study.method, "updates": study.learning.steps, "best_rate": experiment.best_rate()}
    settings = json.loads(json.dumps(dataclasses.asdict(study), default=str))
    return {**versions(), **facts, "study": settings, "rows": rows}
