"""`revtune compare`: STN, Delta-STN, plain runs, Optuna's searchers and a population, each with the same time.

    config.json, seed-<n>/    the contest, and what each contestant came to, as `contest` tells
    results.json              the figures of all, and their best held-out loss over time
    table.md, compare.png     to read and to see

At each seed the contestants learn in this order:

    plain       at the starting values, until held-out loss has not improved for `patience` validations; so many updates
                are a whole trial of the searchers, the first of which is at the starting values too
    stn, delta  for all of their time
    final       a plain run at the final values of the better of these, for as many updates as that one took or until
                the time is spent, whether or not it improves
    searchers   trial after trial for all of their time
    pbt         population based training, for all of its time
    found       as final, at the best searcher's values; it shows what is due to long training

Under a cosine each run ends with it, after --steps updates, or when its time is spent, whichever is first: plain too,
whether or not it improves, stn and delta, every trial, and pbt, each of whose members takes so many. Searchers alone
then use all of their time.

Of every run the best network by held-out loss is kept. Time for tests, checkpoints and journals, and for the choice of
a trial's values, does not count, as it is no part of a method.

Started again in its folder, a contest goes on where it stopped. The budget may then be larger; a trial that the smaller
one cut short stays cut. A search whose trials would now be longer, or a plain run whose values or updates would now be
others, is set aside and begun anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from revtune.program import recipes
from revtune.program.errors import Problem
from revtune.program.files import locked
from revtune.program.runs.clock import Clock
from revtune.program.runs.folder import next_folder
from revtune.program.studies.compare.contest import CONTESTANTS, REPEATS, TERMS, TUNERS, Contest, Contestant, Options
from revtune.program.studies.compare.live import CompareReport
from revtune.program.studies.compare.population import Population
from revtune.program.studies.compare.table import finish
from revtune.program.studies.json_files import JsonObject
from revtune.program.tasks.learner import Learner
from revtune.program.tasks.loop import TaskRun
from revtune.program.tasks.task import SEARCHERS, Learning, Method, Searcher, Task
from revtune.program.tasks.tuned_learner import learner
from revtune.program.tuning import TUNED, check_reached
from revtune.program.typed import check_numbers

PACKAGES: dict[Contestant, tuple[str, ...]] = {
    **dict.fromkeys(SEARCHERS, ("optuna",)), "gp": ("optuna", "scipy"), "cmaes": ("optuna", "cmaes")
}  # fmt: skip
"""What contestants need beyond the program's own, so that its lack is told before the others have learnt."""


def run(name: str, options: Options[Any]) -> Path:
    """Have all contestants learn that have no result yet, then write figures, table and plot; the folder.

    Raises:
        Problem: the options cannot be, the folder holds another contest or is another process's, a file in it is
            damaged, or it was asked to stop.
    """
    options = dataclasses.replace(options, study=options.study.checked())
    check_options(options)
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
    """Have all contestants of a seed learn that have no result yet."""
    options, task = contest.options, None
    for contestant in CONTESTANTS:
        if contestant not in options.contestants or contest.result(seed, contestant) is not None:
            continue
        if task is None:
            study = options.study.at_seed(seed)
            task = recipes.find(contest.recipe).task.as_learnt(study, contest.data())
        aside = contest.begin(seed, contestant)
        with CompareReport(console, f"seed {seed}, {contestant}", options.budget, options.clock).shown() as report:
            if aside is not None:
                why = f"as what it depends on has changed; the earlier run is in {aside}"
                report.say(f"seed {seed}, {contestant}: begun anew, {why}")
            facts = (searched if contestant in SEARCHERS else tuned)(contest, task, seed, contestant, report)
        report.through(facts)


def tuned(contest: Contest, task: Task, seed: int, contestant: Contestant, report: CompareReport) -> JsonObject:
    """Have STN, Delta-STN, a population or a plain run learn; what it came to."""
    terms, budget = contest.terms(seed, contestant) or {}, contest.options.budget
    method: Method = contestant if contestant in ("stn", "delta") else "plain"
    folder, pbt = contest.folder_of(seed, contestant), contest.options.pbt
    learns = Population(task, pbt) if contestant == "pbt" else learner(task, method, terms.get("values"))
    with contextlib.closing(TaskRun(learns, folder, contest.command, contest.seals(folder, TERMS))) as task_run:
        report.best = task_run.learner.progress.best
        task_run.learn(partial(is_over, contest, contestant, terms), report, last=False)
        last = {"final_values": learns.leading()} if isinstance(learns, Population) else {}
        return task_run.result(steps=task_run.learner.steps, budget=budget, **task_run.clock.now(), **last)


def is_over(contest: Contest, contestant: Contestant, terms: JsonObject, learner: Learner, clock: Clock) -> bool:
    """Whether a run has come to its end: its time is spent, or what ends this contestant has happened.

    Under a cosine all end with it. Under another schedule the plain run at the starting values ends where it stops
    improving. How long it is is the length of a trial. Runs at the final and the found values end after as many updates
    as the tuner took, and not where they stop improving.
    """
    if clock.read(contest.options.clock) >= contest.options.budget:
        return True
    if contestant in REPEATS:
        return learner.steps >= int(terms["steps"])
    if learner.learning.schedule == "cosine":
        return learner.past_its_schedule
    return contestant == "plain" and learner.stopped_improving


def searched(contest: Contest, task: Task, seed: int, contestant: Contestant, report: CompareReport) -> JsonObject:
    """Have a searcher learn trial after trial; what it came to."""
    # imported here, as Optuna is an extra that a contest without searchers does without
    from revtune.program.studies.compare.search import Search

    options, terms = contest.options, contest.terms(seed, contestant)
    assert terms is not None
    folder = contest.folder_of(seed, contestant)
    command, seals = contest.command, contest.seals(folder, TERMS)
    search = Search(task, cast(Searcher, contestant), folder, terms["steps"], command, seals, options.storage)
    with contextlib.closing(search):
        if best := search.best():
            report.best = best.user_attrs["loss"]
        learn = search.learn if options.workers == 1 else partial(search.learn_by, options.workers)
        learn(options.budget, options.clock, report)
        return search.result(budget=options.budget)


def check_schedule(learning: Learning) -> None:
    """Raise `Problem` for a cosine that ends between two validations, at which alone networks are judged and kept."""
    steps, every = learning.steps, learning.valid_every
    if learning.schedule == "cosine" and steps % every:
        why = "as runs and trials of a contest end with a cosine and are judged at validations"
        raise Problem(f"--steps must be a multiple of --valid-every {every}, {why}, got {steps}", code=2)


def check_tuners(study: Any, contestants: Collection[Contestant]) -> None:
    """Raise `Problem` for a tuner that a cosine ends before it has tuned anything."""
    for method in TUNED if study.learning.schedule == "cosine" else ():
        if method in contestants:
            check_reached(study.learning.steps, study.tuning(method), method, untuned="the plain contestant")


def check_options(options: Options[Any]) -> None:
    """Raise `Problem` for options that no contest can have."""
    for name, right, expected in (
        ("seeds", options.seeds >= 1, "at least 1"), ("budget", 0 < options.budget < 1e9, "above 0 and below 1e9"),
        ("contestants", bool(options.contestants), "one at least"), ("workers", options.workers >= 1, "at least 1"),
    ):  # fmt: skip
        if not right:
            raise Problem(f"--{name} must be {expected}, got {getattr(options, name)}", code=2)
    check_schedule(options.study.learning)
    check_tuners(options.study, options.contestants)
    check_numbers(options.pbt, prefix="pbt.")
    if options.pbt.members < 2:
        raise Problem(f"--pbt.members must be at least 2, as they take after one another, got {options.pbt.members}",
                      code=2)  # fmt: skip
    contestants = set(options.contestants)
    if "final" in contestants and not contestants & set(TUNERS):
        raise Problem("--contestants final needs stn or delta, whose final values it is run at", code=2)
    if "found" in contestants and not (contestants & set(TUNERS) and contestants & set(SEARCHERS)):
        raise Problem("--contestants found needs a searcher, whose values it is run at, and stn or delta, whose number "
                      "of updates it takes", code=2)  # fmt: skip
    for name, given in (("storage", options.storage is not None), ("workers", options.workers > 1)):
        if given and not contestants & set(SEARCHERS):
            raise Problem(f"--{name} is for the trials of searchers, of which --contestants has none", code=2)
    if contestants & set(SEARCHERS) and "plain" not in contestants:
        raise Problem("--contestants: searchers need plain, whose length is that of their trials", code=2)
    for one in options.contestants:
        for package in PACKAGES.get(one, ()):
            if importlib.util.find_spec(package) is None:
                needs = f"--contestants: {one} needs {package}, which is missing"
                raise Problem(f"{needs}; pip install 'revtune[search]' installs it", code=2)
