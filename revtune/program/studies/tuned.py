"""`revtune train` for a recipe with a task, tuned or not: a run by one method, or the rest of one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic

import torch
import tyro
from torch import nn

from revtune.program import recipes
from revtune.program.errors import Problem
from revtune.program.files import read_text, write
from revtune.program.runs import checkpoint, followed, tracking
from revtune.program.runs.folder import REPLAYED, claimed, command_line, refuse_taken
from revtune.program.runs.followed import Followed
from revtune.program.runs.places import near
from revtune.program.runs.seals import Seals
from revtune.program.runs.tracking import Tracked
from revtune.program.tasks.live import measure
from revtune.program.tasks.loop import DATA, WEIGHTS, TaskRun, best_weights, check_seals, data_of
from revtune.program.tasks.plain_learner import ValuesAt
from revtune.program.tasks.task import (
    METHODS,
    Method,
    PlainTask,
    S,
    Size,
    Study,
    check,
    check_tuned,
    with_absolute_paths,
    with_place,
)
from revtune.program.tasks.tuned_learner import learner
from revtune.program.tuning import in_a_line
from revtune.program.typed import read_typed, reason, told_of
from revtune.tuning.conversion.plain import plain
from revtune.tuning.conversion.replay import values_at
from revtune.tuning.hypers.constants import Constants
from revtune.tuning.tuner.schedule import Schedule

REPLAYS = "replays"
"""What config.json calls whether a run takes its hyperparameters from another."""


@dataclass(frozen=True, kw_only=True)
class Options(Generic[S]):
    """Learn a task, its hyperparameters tuned on the way."""

    study: Annotated[S, tyro.conf.arg(name="")]
    method: Method = "delta"
    """Delta-STN, STN, or a plain run at the starting values, or at those of another run."""
    followed: Annotated[Followed, tyro.conf.arg(name="")] = field(default_factory=Followed)
    out: Path | None = None
    """Folder of the run; by default the next free runs/<recipe>-<n>."""
    size: Size = "small"
    """small is made for two cores; paper has the settings of the recipe's paper, full all data of a signal."""
    track: Tracked = "none"
    """Which tracker is told of losses, bits, memory and hyperparameters besides metrics.jsonl."""
    resume: Path | None = None
    """Go on with the run in this folder with its own settings; only --data, --track and --accept-edits go with it."""


def start(name: str, options: Options[Any]) -> Path:
    """A new run of a recipe, from its first step to its last; its folder."""
    refuse_taken(options.out)
    study = with_absolute_paths(options.study)
    check(study)
    check_method(name, study, options.method)
    tracking.check(options.track)
    options.followed.check_untuned(None if options.method == "plain" else f"--method {options.method}")
    task = recipes.find(name).task(study)
    schedule = options.followed.schedule(Constants(task.hypers()).values())
    values = values_by_step(task, schedule)
    if schedule is not None:
        print(f"the hyperparameters follow {followed.whose(schedule)}")
    facts: dict[str, Any] = {"recipe": name, "size": options.size, "method": options.method}
    facts["study"] = dataclasses.asdict(study)
    with claimed(name, options.out) as folder:
        if schedule is not None:
            facts[REPLAYS] = True
            followed.keep(schedule, folder)
        facts |= near(folder, data=study.data)
        write(folder / "config.json", json.dumps(facts, indent=2, default=str).encode() + b"\n")
    go_on(task, options.method, folder, Seals.of(folder), values, options.track)
    return folder


def check_method(name: str, study: Study, method: Method) -> None:
    """Raise `Problem` for a method by which a recipe cannot be learnt, or not in so few updates."""
    if method != "plain" and recipes.find(name).kind == "signal":
        raise Problem(f"--method must be plain, as recipe {name} tunes no hyperparameters, got {method}", code=2)
    check_tuned(study, method)


def values_by_step(task: PlainTask, schedule: Schedule | None) -> ValuesAt | None:
    """The values that a plain run follows, if it follows any.

    Raises:
        Problem: they are of other hyperparameters than the task's.
    """
    if schedule is None:
        return None
    followed.check_fits(schedule, task.hypers())
    return partial(values_at, schedule)


def stored(folder: Path) -> tuple[str, Method, Study]:
    """Recipe, method and settings of the run in a folder.

    Raises:
        Problem: its configuration is not of this version.
    """
    path = folder / "config.json"
    try:
        facts = json.loads(read_text(path))
        method = facts["method"]
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        default = recipes.find(facts["recipe"]).study(facts["size"])
        study = read_typed(type(default), facts["study"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise Problem(f"{path} is no configuration of this revtune: {reason(error)}") from error
    with told_of(path):
        check(study)
    return facts["recipe"], method, study


def replays(folder: Path) -> bool:
    """Whether the run in a folder, whose configuration is whole, takes its hyperparameters from another."""
    return bool(json.loads(read_text(folder / "config.json")).get(REPLAYS))


def resume(
    folder: Path, *, accept_edits: bool = False, data: Path | None = None, track: Tracked = "none"
) -> None:  # fmt: skip
    """Go on with the run in a folder; `data` is the folder with data sets, where that has been moved.

    Raises:
        Problem: nothing is left to do.
    """
    (name, method, study), seals = stored(folder), Seals.of(folder, accept_edits=accept_edits)
    check_seals(folder, seals)
    study = with_place(study, folder, data)
    with told_of(folder / "config.json"):
        task = recipes.find(name).task.as_learnt(study, data_of(folder))
    schedule = followed.read(folder / REPLAYED) if replays(folder) else None
    go_on(task, method, folder, seals, values_by_step(task, schedule), track)


def go_on(
    task: Any, method: Method, folder: Path, seals: Seals, values: ValuesAt | None, track: Tracked
) -> None:  # fmt: skip
    """Take the steps that are left, write what is missing of the result, and say what the run came to.

    Raises:
        Problem: nothing is left to do.
    """
    torch.set_num_threads(task.study.threads)
    command = command_line("train", "--resume", folder)
    with contextlib.closing(TaskRun(learner(task, method, schedule=values), folder, command, seals)) as task_run:
        task_run.metrics.track(track, task_run.learner.steps)
        task_run.learn_to_end(task.measure)
        print(in_words(task.measure, task_run.result(), folder))


def opened(folder: Path, *, accept_edits: bool = False, data: Path | None = None) -> tuple[PlainTask, nn.Module]:
    """The task of the run in a folder, and its best network, plain and ready to evaluate; `data` as in `resume`.

    Raises:
        Problem: the run has not come to its end, or its weights are damaged.
    """
    saved, (name, _, study) = best_weights(folder), stored(folder)
    Seals.of(folder, accept_edits=accept_edits).check(saved.seals, folder / WEIGHTS)
    torch.set_num_threads(study.threads)
    study = with_place(study, folder, data)
    with told_of(folder / "config.json"):
        task: PlainTask = recipes.find(name).task.as_learnt(study, saved.seals.get(DATA, data_of(folder)))
    if saved.seals.get(DATA, task.digest()) != task.digest():
        raise Problem(f"the data are not those that {folder} was trained on: their digest differs")
    hypers = Constants(task.hypers())
    model = plain(task.net(hypers), hypers)
    checkpoint.untie(model, saved.tensors.keys())
    checkpoint.load_weights(model, saved, folder / WEIGHTS)
    return task, model.eval()


def in_words(quoted: str, result: dict[str, Any], folder: Path) -> str:
    """What a finished run came to, in three lines."""
    best = f": {values}" if (values := in_a_line(result["values"])) else ""
    return "\n".join([
        f"\nbest held-out {measure(quoted, result['valid'])}, at step {result['step']}{best}",
        f"test {measure(quoted, result['test'])}",
        f"the run is in {folder}",
    ])  # fmt: skip
