"""`revtune compare`: STN, Delta-STN, plain runs and Optuna's searchers on one task, each with the same time.

    config.json               the contest
    seed-<n>/<contestant>/    each contestant's folder, as `tuned_run` and `search` tell
    results.json              the figures of all, and their best held-out loss over time
    table.md, compare.png     to read and to see

In a seed the plain run at the starting values comes first. It learns until its held-out loss has not improved for
`patience` validations, and that many updates are a whole trial of the searchers. Last but those come the methods that
tune in one run, which use all of their time, and a plain run at the better one's final values, which like the first
ends where it stops improving. Time on tests, checkpoints and journals does not count, as it is no part of a method.
Started again in its folder, a contest goes on where it stopped; with a larger budget too, and then a trial that the
smaller one cut short stays cut, and the plain run at the final values is made anew where these have moved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

import torch
import tyro
from rich.console import Console

from revtune import recipes
from revtune.clock import Clock, Kind
from revtune.compare_report import CompareReport
from revtune.config import read_typed
from revtune.learner import Learner, learner
from revtune.problem import Problem
from revtune.run import next_folder, write
from revtune.task import Method, Size, Study, Task
from revtune.tuned_run import Course
from revtune.tuned_train import at_home, check

Contestant = Literal["plain", "stn", "delta", "final", "random", "grid", "tpe", "hyperband"]
CONTESTANTS: tuple[Contestant, ...] = get_args(Contestant)
TUNERS: tuple[Contestant, ...] = ("stn", "delta")
S = TypeVar("S", bound=Study)
Facts = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options(Generic[S]):
    """Compare ways of tuning on a recipe's task, with equal time for each."""

    study: Annotated[S, tyro.conf.arg(name="")]
    seeds: int = 1
    """Run everything so many times, from --seed on."""
    budget: float = 1200.0
    """Seconds that each way of tuning may use."""
    clock: Kind = "wall"
    """Whose seconds: the wall's, or the processor's, which is fairer where other work shares the machine."""
    contestants: tuple[Contestant, ...] = CONTESTANTS
    """Who takes part; final needs stn or delta, searchers need plain."""
    out: Path | None = None
    """Folder of the contest; one that holds this contest is gone on with. By default the next free runs/compare-<n>."""
    size: Size = "small"
    """small is made for two cores; paper has the settings of the paper that the recipe is from."""


@dataclass(frozen=True)
class Contest:
    """A contest in its folder.

    Attributes:
        recipe: whose task it is.
        options: what was asked for.
        folder: where it is kept.
    """

    recipe: str
    options: Options[Any]
    folder: Path

    def seeds(self) -> list[int]:
        """The seeds of the studies."""
        first: int = self.options.study.seed
        return list(range(first, first + self.options.seeds))

    def place(self, seed: int, contestant: Contestant) -> Path:
        """A contestant's folder."""
        return self.folder / f"seed-{seed}" / contestant

    def result(self, seed: int, contestant: Contestant) -> Facts | None:
        """What a contestant came to, if it is through with all of the budget."""
        path = self.place(seed, contestant) / "result.json"
        found: Facts | None = json.loads(path.read_text()) if path.exists() else None
        return found if found is not None and found.get("budget", 0) >= self.options.budget else None

    def validations(self, seed: int, contestant: Contestant) -> list[Facts]:
        """Every validation of a contestant, in order."""
        lines = (self.place(seed, contestant) / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    @property
    def goes_on(self) -> str:
        """The command that goes on with it."""
        return f"the same command with --out {self.folder}"


def run(name: str, options: Options[Any]) -> Path:
    """Have all contestants learn who are not through yet, then write figures, table and plot; the folder.

    Raises:
        Problem: the options cannot be, the folder holds another contest, or it was asked to stop.
    """
    from revtune.compare_table import finish

    options = dataclasses.replace(options, study=at_home(options.study))
    refuse(options)
    contest = Contest(name, options, folder_of(name, options))
    console = Console(highlight=False)
    torch.set_num_threads(options.study.threads)
    for seed in contest.seeds():
        missing = [one for one in CONTESTANTS if one in options.contestants and contest.result(seed, one) is None]
        if not missing:
            continue
        task = recipes.find(name).task(dataclasses.replace(options.study, seed=seed))
        for one in missing:
            contest.place(seed, one).mkdir(parents=True, exist_ok=True)
            with CompareReport(console, f"seed {seed}, {one}", options.budget, options.clock).shown() as report:
                facts = (tuned if one in ("plain", "final", *TUNERS) else searched)(contest, task, seed, one, report)
            report.through(facts)
    finish(contest, console)
    return contest.folder


def tuned(contest: Contest, task: Task, seed: int, one: Contestant, report: CompareReport) -> Facts:
    """Have STN, Delta-STN or a plain run learn; what it came to."""
    options = contest.options
    values = None
    if one == "final":
        values = final_values(contest, seed)
        set_aside(contest.place(seed, one), values)
    method: Method = one if one in ("stn", "delta") else "plain"
    with contextlib.closing(Course(learner(task, method, values), contest.place(seed, one), contest.goes_on)) as course:
        course.learn(ends(one, options), report, last=False)
        return course.result(steps=course.learner.steps, budget=options.budget, **course.clock.now())


def ends(one: Contestant, options: Options[Any]) -> Callable[[Learner, Clock], bool]:
    """Where a run ends: with its time; a plain one also where it stops improving."""
    plain = one not in TUNERS

    def over(learner: Learner, clock: Clock) -> bool:
        return clock.read(options.clock) >= options.budget or (plain and learner.stopped_improving)

    return over


def searched(contest: Contest, task: Task, seed: int, one: Contestant, report: CompareReport) -> Facts:
    """Have a searcher learn trial after trial; what it came to."""
    from revtune.search import Search

    options, steps = contest.options, trial_steps(contest, seed)
    assert one in ("random", "grid", "tpe", "hyperband")
    with contextlib.closing(Search(task, one, contest.place(seed, one), steps, contest.goes_on)) as search:
        search.learn(options.budget, options.clock, report)
        return search.result(budget=options.budget)


def trial_steps(contest: Contest, seed: int) -> int:
    """Updates of a trial: those that the plain run at the starting values took until it stopped improving."""
    return int(contest.validations(seed, "plain")[-1]["step"])


def final_values(contest: Contest, seed: int) -> dict[str, float]:
    """Where the better of STN and Delta-STN, by its held-out loss, left the hyperparameters."""
    results = [found for one in TUNERS if (found := contest.result(seed, one)) is not None]
    values: dict[str, float] = min(results, key=lambda found: found["valid"]["loss"])["final_values"]
    return values


def set_aside(place: Path, values: dict[str, float]) -> None:
    """Rename the folder of a run that came to its end at other values than these, and make a new one."""
    path = place / "result.json"
    if path.exists() and (found := json.loads(path.read_text()))["values"] != values:
        place.rename(place.with_name(f"{place.name}-after-{found.get('budget', 0):g}"))
        place.mkdir()


def refuse(options: Options[Any]) -> None:
    """Raise `Problem` for options that no contest can have."""
    check(options.study)
    for name, right, wanted in (
        ("seeds", options.seeds >= 1, "at least 1"), ("budget", 0 < options.budget < 1e9, "above 0"),
        ("contestants", bool(options.contestants), "one at least"),
    ):  # fmt: skip
        if not right:
            raise Problem(f"--{name} must be {wanted}, got {getattr(options, name)}", code=2)
    there = set(options.contestants)
    if "final" in there and not there & set(TUNERS):
        raise Problem("--contestants final needs stn or delta, whose final values it is run at", code=2)
    if there & {"random", "grid", "tpe", "hyperband"} and "plain" not in there:
        raise Problem("--contestants: searchers need plain, whose length is that of their trials", code=2)


def folder_of(name: str, options: Options[Any]) -> Path:
    """The contest's folder, its configuration in it; one that holds the same contest already is gone on with.

    More seeds, contestants and seconds may be asked for than were before.
    """
    facts = {"recipe": name, **dataclasses.asdict(options)}
    facts.pop("out")
    facts = json.loads(json.dumps(facts, default=str))
    if options.out is not None and (options.out / "config.json").exists():
        path = options.out / "config.json"
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            read_typed(type(options.study), there["study"])
        except (KeyError, TypeError, ValueError) as error:
            raise Problem(f"{path} is no configuration of a contest of this revtune: {error}") from error
        more = ("seeds", "contestants", "budget")
        if {**there, **dict.fromkeys(more)} != {**facts, **dict.fromkeys(more)}:
            raise Problem(f"{options.out} holds a contest with other settings; give another --out")
        if options.budget < there["budget"]:
            raise Problem(f"{options.out} holds a contest with --budget {there['budget']:g}, which can only grow, got "
                          f"{options.budget:g}", code=2)  # fmt: skip
        folder = options.out
    else:
        folder = options.out or next_folder("compare")
        folder.mkdir(parents=True, exist_ok=True)
    write(folder / "config.json", json.dumps(facts, indent=1).encode() + b"\n")
    return folder
