"""A contest in its folder: who takes part, what each has come to, and on which terms.

    config.json               the contest
    lock                      held by the process that is at work in it
    seed-<n>/<contestant>/    each contestant's folder, as `tuned_run` and `search` tell, and in it
        terms.json            what its run depends on of others': of a search, the length of its trials; of a plain run
                              at the final or the found values, these and the updates that the tuner took
    seed-<n>/<contestant>-aside-<m>/    one that was begun on terms which are no longer so

A result counts while its terms are those of now.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

import tyro

from revtune.program import recipes
from revtune.program.errors import Problem
from revtune.program.files import write
from revtune.program.runs.clock import ClockKind
from revtune.program.runs.metrics import last_step
from revtune.program.studies.json_files import Facts, Like, facts_by_line, facts_in, lacking
from revtune.program.tasks.task import SEARCHERS, Size, Study
from revtune.program.typed import read_typed

NAMES: dict[str, str] = {
    "plain": "plain, start", "stn": "STN", "delta": "Delta-STN", "final": "plain, tuned", "random": "random",
    "grid": "grid", "tpe": "TPE", "hyperband": "Hyperband", "found": "plain, found",
}  # fmt: skip


Contestant = Literal["plain", "stn", "delta", "final", "random", "grid", "tpe", "hyperband", "found"]


CONTESTANTS: tuple[Contestant, ...] = get_args(Contestant)


TUNERS: tuple[Contestant, ...] = ("stn", "delta")


REPEATS: tuple[Contestant, ...] = ("final", "found")
"""Plain runs at the values that the better tuner ended with, and at those that the best searcher found."""


CONFIG: Like = {"recipe": str, "study": dict, "budget": float}


VALIDATION: Like = {"step": int, "loss": float, "wall": float, "cpu": float}


RESULT: Like = {"budget": float, "wall": float, "cpu": float, "values": dict, "valid": {"loss": float}}


MORE = ("seeds", "contestants", "budget")
"""What a contest may have more of when it is gone on with."""


S = TypeVar("S", bound=Study)


@dataclass(frozen=True, kw_only=True)
class Options(Generic[S]):
    """Compare ways of tuning on a recipe's task, with equal time for each."""

    study: Annotated[S, tyro.conf.arg(name="")]
    seeds: int = 1
    """Run everything so many times, from --seed on."""
    budget: float = 1200.0
    """Seconds that each way of tuning may use."""
    clock: ClockKind = "wall"
    """Whose seconds: the wall's, or the processor's, which is fairer where other work shares the machine."""
    contestants: tuple[Contestant, ...] = CONTESTANTS
    """Who takes part; final needs stn or delta, searchers need plain, found needs one of each."""
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

    def place(self, seed: int, one: Contestant) -> Path:
        """A contestant's folder."""
        return self.folder / f"seed-{seed}" / one

    def result(self, seed: int, one: Contestant) -> Facts | None:
        """What a contestant came to, if it is through with all of the budget, on the terms of now.

        Raises:
            Problem: a file of it is damaged.
        """
        path = self.place(seed, one) / "result.json"
        if not path.exists() or self.terms(seed, one) != self.begun_on(seed, one):
            return None
        try:
            found = facts_in(path, self._like(one))
        except Problem as error:
            raise Problem(f"{error}; without it, {self.goes_on} writes it anew") from error
        return found if found["budget"] >= self.options.budget else None

    def _like(self, one: Contestant) -> Like:
        own: Like = {"trials": int, "pruned": int} if one in SEARCHERS else {"steps": int, "final_values": dict}
        return {**RESULT, "test": {"loss": float, recipes.find(self.recipe).task.measure: float}, **own}

    def validations(self, seed: int, one: Contestant) -> list[Facts]:
        """Every validation of a contestant who is through, in order.

        Raises:
            Problem: there is none, or one is damaged.
        """
        return facts_by_line(self.place(seed, one) / "metrics.jsonl", VALIDATION)

    def terms(self, seed: int, one: Contestant) -> Facts | None:
        """What a contestant's run depends on of others', who must be through; None while they are not."""
        if one in SEARCHERS:
            plain, every = self.result(seed, "plain"), self.options.study.learning.valid_every
            return None if plain is None else {"steps": plain["steps"] // every * every}
        if one not in REPEATS:
            return {}
        tuner, searcher = self._best(seed, TUNERS), self._best(seed, SEARCHERS)
        if tuner is None or (one == "found" and searcher is None):
            return None
        values = tuner["final_values"] if searcher is None or one == "final" else searcher["values"]
        return {"values": values, "steps": tuner["steps"]}

    def _best(self, seed: int, some: tuple[Contestant, ...]) -> Facts | None:
        """The result of the best of some contestants, by held-out loss; None while none is through."""
        through = [found for one in some if (found := self.result(seed, one)) is not None]
        return min(through, key=lambda found: float(found["valid"]["loss"]), default=None)

    def begun_on(self, seed: int, one: Contestant) -> Facts:
        """The terms that a contestant's folder was begun on; a search that wrote none down, on its longest trial's."""
        place = self.place(seed, one)
        if (place / "terms.json").exists():
            return facts_in(place / "terms.json", {})
        return {"steps": last_step(place / "metrics.jsonl")} if one in SEARCHERS else {}

    def begin(self, seed: int, one: Contestant) -> Path | None:
        """Make a contestant's folder, its terms in it; one begun on others is set aside, and its new name given."""
        place, terms, aside = self.place(seed, one), self.terms(seed, one), None
        if place.exists() and any(place.iterdir()) and self.begun_on(seed, one) != terms:
            names = (place.with_name(f"{one}-aside-{number}") for number in itertools.count(1))
            aside = place.rename(next(name for name in names if not name.exists()))
        place.mkdir(parents=True, exist_ok=True)
        if terms:
            write(place / "terms.json", json.dumps(terms, indent=1).encode() + b"\n")
        return aside

    def keep(self) -> None:
        """Write the configuration; the folder may hold the same contest, but for `MORE`.

        Raises:
            Problem: it holds another, or one with a larger budget.
        """
        path, told = self.folder / "config.json", {"recipe": self.recipe, **dataclasses.asdict(self.options)}
        told = json.loads(json.dumps({name: told[name] for name in told if name != "out"}, default=str))
        if path.exists():
            there = self._stored(path)
            if {**there, **dict.fromkeys(MORE)} != {**told, **dict.fromkeys(MORE)}:
                raise Problem(f"{self.folder} holds a contest with other settings; give another --out")
            if told["budget"] < there["budget"]:
                raise Problem(f"{self.folder} holds a contest with --budget {there['budget']:g}, which can only grow, "
                              f"got {told['budget']:g}", code=2)  # fmt: skip
        write(path, json.dumps(told, indent=1).encode() + b"\n")

    def _stored(self, path: Path) -> Facts:
        try:
            there: Facts = json.loads(path.read_bytes())
            if (what := lacking(there, CONFIG)) is not None:
                raise ValueError(f"expected {what}")
            read_typed(type(self.options.study), there["study"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise Problem(f"{path} is no configuration of a contest of this revtune: {error}") from error
        return there

    @property
    def goes_on(self) -> str:
        """The command that goes on with it."""
        return f"the same command with --out {self.folder}"
