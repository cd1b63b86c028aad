"""`revtune compare`: STN, Delta-STN, plain runs and Optuna's searchers on one task, each with the same time.

    config.json, seed-<n>/    the contest, and what each contestant came to, as `contest` tells
    results.json              the figures of all, and their best held-out loss over time
    table.md, compare.png     to read and to see

In a seed the plain run at the starting values comes first. It learns until its held-out loss has not improved for
`patience` validations, and that many updates are a whole trial of the searchers, whose first is at the starting values
too. Then come the methods that tune in one run, which use all of their time, and a plain run at the better one's final
values, which learns for as many updates as that one took, or until its time is spent, whether or not it improves; after
the searchers another such run at the best one's values, so that what is due to long training is seen. Of every run the
best network by held-out loss is kept. Time on tests, checkpoints and journals, and on the choice of a trial's values,
does not count, as it is no part of a method.

Started again in its folder, a contest goes on where it stopped; with a larger budget too, and then a trial that the
smaller one cut short stays cut. A search whose trials would now be longer, or a plain run whose values or updates would
now be others, is set aside and begun anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from revtune.program import recipes
from revtune.program.errors import Problem
from revtune.program.files import locked
from revtune.program.runs.clock import Clock
from revtune.program.runs.folder import next_folder
from revtune.program.studies.compare.contest import CONTESTANTS, REPEATS, TUNERS, Contest, Contestant, Options
from revtune.program.studies.compare.live import CompareReport
from revtune.program.studies.compare.table import finish
from revtune.program.studies.json_files import Facts
from revtune.program.tasks.learner import Learner
from revtune.program.tasks.loop import TaskRun
from revtune.program.tasks.task import SEARCHERS, Method, Task, check, with_absolute_paths
from revtune.program.tasks.tuned_learner import learner


def run(name: str, options: Options[Any]) -> Path:
    """Have all contestants learn who are not through yet, then write figures, table and plot; the folder.

    Raises:
        Problem: the options cannot be, the folder holds another contest or is another process's, a file in it is
            damaged, or it was asked to stop.
    """
    options = dataclasses.replace(options, study=with_absolute_paths(options.study))
    refuse(options)
    contest, console = Contest(name, options, options.out or next_folder("compare")), Console(highlight=False)
    contest.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.study.threads)
    with locked(contest.folder):
        contest.keep()
        for seed in contest.seeds():
            learn(contest, seed, console)
        finish(contest, console)
    return contest.folder


def learn(contest: Contest, seed: int, console: Console) -> None:
    """Have all contestants of a seed learn who are not through yet."""
    options, task = contest.options, None
    for one in CONTESTANTS:
        if one not in options.contestants or contest.result(seed, one) is not None:
            continue
        if task is None:
            task = recipes.find(contest.recipe).task(dataclasses.replace(options.study, seed=seed))
        aside = contest.begin(seed, one)
        with CompareReport(console, f"seed {seed}, {one}", options.budget, options.clock).shown() as report:
            if aside is not None:
                report.say(f"seed {seed}, {one}: begun anew, as what it depends on has changed; before is in {aside}")
            facts = (searched if one in SEARCHERS else tuned)(contest, task, seed, one, report)
        report.through(facts)


def tuned(contest: Contest, task: Task, seed: int, one: Contestant, report: CompareReport) -> Facts:
    """Have STN, Delta-STN or a plain run learn; what it came to."""
    terms, budget = contest.terms(seed, one) or {}, contest.options.budget
    method: Method = one if one in ("stn", "delta") else "plain"
    learns = learner(task, method, terms.get("values"))
    with contextlib.closing(TaskRun(learns, contest.place(seed, one), contest.goes_on)) as task_run:
        report.best = task_run.learner.progress.best
        task_run.learn(ends(contest, one, terms), report, last=False)
        return task_run.result(steps=task_run.learner.steps, budget=budget, **task_run.clock.now())


def ends(contest: Contest, one: Contestant, terms: Facts) -> Callable[[Learner, Clock], bool]:
    """Where a run ends: with its time, whoever it is.

    The plain run at the starting values ends also where it stops improving, which is how long trials are; those at
    the final and the found values with as many updates as the tuner took, and never by patience.
    """
    options = contest.options

    def over(learner: Learner, clock: Clock) -> bool:
        spent = clock.read(options.clock) >= options.budget
        if one == "plain":
            return spent or learner.stopped_improving
        return spent or (one in REPEATS and learner.steps >= terms["steps"])

    return over


def searched(contest: Contest, task: Task, seed: int, one: Contestant, report: CompareReport) -> Facts:
    """Have a searcher learn trial after trial; what it came to."""
    # imported here, as Optuna is an extra that a contest without searchers does without
    from revtune.program.studies.compare.search import Search

    options, terms = contest.options, contest.terms(seed, one)
    assert terms is not None and one in ("random", "grid", "tpe", "hyperband")
    with contextlib.closing(Search(task, one, contest.place(seed, one), terms["steps"], contest.goes_on)) as search:
        if before := search.best():
            report.best = before.user_attrs["loss"]
        search.learn(options.budget, options.clock, report)
        return search.result(budget=options.budget)


def refuse(options: Options[Any]) -> None:
    """Raise `Problem` for options that no contest can have."""
    check(options.study)
    for name, right, wanted in (
        ("seeds", options.seeds >= 1, "at least 1"), ("budget", 0 < options.budget < 1e9, "above 0 and below 1e9"),
        ("contestants", bool(options.contestants), "one at least"),
    ):  # fmt: skip
        if not right:
            raise Problem(f"--{name} must be {wanted}, got {getattr(options, name)}", code=2)
    there = set(options.contestants)
    if "final" in there and not there & set(TUNERS):
        raise Problem("--contestants final needs stn or delta, whose final values it is run at", code=2)
    if "found" in there and not (there & set(TUNERS) and there & set(SEARCHERS)):
        raise Problem("--contestants found needs a searcher, whose values it is run at, and stn or delta, whose number "
                      "of updates it takes", code=2)  # fmt: skip
    if there & set(SEARCHERS) and "plain" not in there:
        raise Problem("--contestants: searchers need plain, whose length is that of their trials", code=2)
