"""A contest in its folder: who takes part, what each has come to, and on which terms.

    config.json               the contest
    lock                      held by the process that is at work in it
    seed-<n>/<contestant>/    each contestant's folder, as `tasks.loop` and `search` tell, and in it
        terms.json            what its run takes from others: a search the length of its trials, a plain run at the
                              final or the found values these values and the tuner's number of updates
    seed-<n>/<contestant>-aside-<m>/    a run on terms that have changed since

A result counts as long as its terms are the present ones.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

import tyro

from revtune.program import recipes
from revtune.program.errors import Problem
from revtune.program.files import read_bytes, write
from revtune.program.runs import checkpoint
from revtune.program.runs.clock import ClockKind
from revtune.program.runs.metrics import last_step
from revtune.program.runs.seals import RUN, Seals, digest
from revtune.program.studies.compare.journal_seals import JOURNAL, METRICS, last_seal
from revtune.program.studies.compare.population import PopulationSettings
from revtune.program.studies.json_files import JsonObject, Template, as_written, missing, read_lines, read_object
from revtune.program.tasks.loop import WEIGHTS, check_metrics, check_result, data_of
from revtune.program.tasks.task import SEARCHERS, Settings, Size
from revtune.program.typed import read_typed, reason

NAMES: dict[str, str] = {
    "plain": "plain, start", "stn": "STN", "delta": "Delta-STN", "final": "plain, tuned", "random": "random",
    "grid": "grid", "tpe": "TPE", "hyperband": "Hyperband", "asha": "ASHA", "gp": "GP", "cmaes": "CMA-ES", "pbt": "PBT",
    "found": "plain, found",
}  # fmt: skip

Contestant = Literal[
    "plain", "stn", "delta", "final", "random", "grid", "tpe", "hyperband", "asha", "gp", "cmaes", "pbt", "found"
]

CONTESTANTS: tuple[Contestant, ...] = get_args(Contestant)

TUNERS: tuple[Contestant, ...] = ("stn", "delta")

RIVALS: tuple[Contestant, ...] = (*SEARCHERS, "pbt")
"""Whose best held-out loss STN and Delta-STN are to reach: the searchers, and population based training."""

REPEATS: tuple[Contestant, ...] = ("final", "found")
"""Plain runs at the values that the better tuner ended with, and at those that the best searcher found."""

CONFIG: Template = {"recipe": str, "study": dict, "budget": float}

VALIDATION: Template = {"step": int, "loss": float, "wall": float, "cpu": float}

RESULT: Template = {"budget": float, "wall": float, "cpu": float, "values": dict, "valid": {"loss": float}}

TERMS = "terms.json"

MORE = ("seeds", "contestants", "budget")
"""What a contest may have more of when it is resumed."""

S = TypeVar("S", bound=Settings)


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
    pbt: PopulationSettings = field(default_factory=PopulationSettings)
    workers: int = 1
    """Processes that run a searcher's trials at once; the budget is the time of all of them together."""
    storage: str | None = None
    """Where Optuna keeps the trials, a URL such as sqlite:///trials.db; by default a journal in each search's folder.
    """
    out: Path | None = None
    """Folder of the contest; one that holds this contest is resumed. By default the next free runs/compare-<n>."""
    size: Size = "small"
    """small is made for two cores; paper has the settings of the paper that the recipe is from."""
    accept_edits: bool = False
    """Take what is in the folder as it is, though it was edited."""


@dataclass(frozen=True)
class Contest:
    """A contest in its folder.

    Attributes:
        recipe: the name of the one whose task it is.
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

    def folder_of(self, seed: int, contestant: Contestant) -> Path:
        """A contestant's folder."""
        return self.folder / f"seed-{seed}" / contestant

    def data(self) -> str | None:
        """The digest of the data that the contest learns from, as far as one of its runs knows it."""
        folders = (self.folder_of(seed, contestant) for seed in self.seeds() for contestant in CONTESTANTS)
        return next((digest for folder in folders if (digest := data_of(folder)) is not None), None)

    def result(self, seed: int, contestant: Contestant) -> JsonObject | None:
        """What a contestant came to, if it has used all of the budget on the present terms.

        Raises:
            Problem: a file of it is damaged.
        """
        path = self.folder_of(seed, contestant) / "result.json"
        if not path.exists() or self.terms(seed, contestant) != self.begun_on(seed, contestant):
            return None
        try:
            result = read_object(path, self._template(contestant))
        except Problem as error:
            raise Problem(f"{error}; without it, {self.command} writes it anew") from error
        if result["budget"] < self.options.budget:
            return None
        self._check_sealed(path, result, contestant)
        return result

    def seals(self, folder: Path, *files: str) -> Seals:
        """The digests of the settings but for `MORE`, which can grow, and of files of a contestant."""
        settings = json.dumps({**self._settings(), **dict.fromkeys(MORE)}).encode()
        own = {RUN: folder.relative_to(self.folder).as_posix(), **Seals.of(folder, files).digests}
        return Seals({"../../config.json": digest(settings), **own}, self.options.accept_edits)

    def _check_sealed(self, path: Path, result: JsonObject, contestant: Contestant) -> None:
        if contestant not in SEARCHERS:
            check_result(path.parent, result, self.seals(path.parent, TERMS))
        else:
            self._check_search(path.parent, result, path.name, JOURNAL, TERMS)

    def _check_search(self, folder: Path, result: JsonObject, *names: str) -> None:
        best = folder / f"trial-{result['trial']}.safetensors"
        # where the result names another network than the one that is there, that one knows it
        for path in [best] if best.exists() else sorted(folder.glob("trial-*.safetensors")):
            self.seals(folder, *names).check(checkpoint.read_facts(path).seals, path)

    def _template(self, contestant: Contestant) -> Template:
        own: Template = (
            {"trials": int, "pruned": int} if contestant in SEARCHERS else {"steps": int, "final_values": dict}
        )
        return {**RESULT, "test": {"loss": float, recipes.find(self.recipe).task.measure: float}, **own}

    def validations(self, seed: int, contestant: Contestant) -> list[JsonObject]:
        """Every validation of a contestant that has a result, in order.

        Raises:
            Problem: there is none, or one is damaged.
        """
        folder = self.folder_of(seed, contestant)
        lines = read_lines(folder / METRICS, VALIDATION)
        if contestant not in SEARCHERS:
            check_metrics(folder, accept_edits=self.options.accept_edits)
        elif (result := self.result(seed, contestant)) is not None:
            self._check_search(folder, result, METRICS)
        return lines

    def terms(self, seed: int, contestant: Contestant) -> JsonObject | None:
        """What a contestant's run takes from others' results; None while those are not there."""
        if contestant in SEARCHERS:
            plain, every = self.result(seed, "plain"), self.options.study.learning.valid_every
            # whole rounds of validations, as a trial is judged and pruned at these alone
            return None if plain is None else {"steps": plain["steps"] // every * every}
        if contestant not in REPEATS:
            return {}
        tuner, searcher = self._best(seed, TUNERS), self._best(seed, SEARCHERS)
        if tuner is None or (contestant == "found" and searcher is None):
            return None
        values = tuner["final_values"] if searcher is None or contestant == "final" else searcher["values"]
        return {"values": values, "steps": tuner["steps"]}

    def _best(self, seed: int, some: tuple[Contestant, ...]) -> JsonObject | None:
        """The result of the best of some contestants, by held-out loss; None while none has one."""
        results = [result for contestant in some if (result := self.result(seed, contestant)) is not None]
        return min(results, key=lambda result: float(result["valid"]["loss"]), default=None)

    def begun_on(self, seed: int, contestant: Contestant) -> JsonObject:
        """The terms that a contestant's folder was begun on.

        A search of an earlier version wrote none down; its longest trial shows them.

        Raises:
            Problem: they are damaged, or were edited.
        """
        folder = self.folder_of(seed, contestant)
        if (folder / TERMS).exists():
            terms = read_object(folder / TERMS, {})  # before the seals, to say what is wrong with it
            self._check_terms(folder)
            return terms
        return {"steps": last_step(folder / METRICS)} if contestant in SEARCHERS else {}

    def _check_terms(self, folder: Path) -> None:
        """Raise `Problem` when the terms are not those that a contestant's run was begun on."""
        seals = self.seals(folder, TERMS)
        if seal := last_seal(folder / JOURNAL):
            seals.check(seal.digests, folder / JOURNAL)
        for path in (folder / WEIGHTS, folder / "checkpoint.safetensors"):
            if path.exists():
                seals.check(checkpoint.read_facts(path).seals, path)

    def begin(self, seed: int, contestant: Contestant) -> Path | None:
        """Make a contestant's folder, with its terms.

        Returns:
            Where a run that was begun there on other terms has been set aside to, if there was one.
        """
        folder, terms, aside = self.folder_of(seed, contestant), self.terms(seed, contestant), None
        if folder.exists() and any(folder.iterdir()) and self.begun_on(seed, contestant) != terms:
            paths = (folder.with_name(f"{contestant}-aside-{number}") for number in itertools.count(1))
            aside = folder.rename(next(path for path in paths if not path.exists()))
        folder.mkdir(parents=True, exist_ok=True)
        if terms:
            write(folder / TERMS, json.dumps(terms, indent=1).encode() + b"\n")
        return aside

    def keep(self) -> None:
        """Write the configuration; the folder may hold the same contest, but for `MORE` and where its data were.

        Raises:
            Problem: it holds another, or one with a larger budget.
        """
        path, settings = self.folder / "config.json", self._settings()
        if path.exists():
            before, _ = self._stored(path)
            if {**before, **dict.fromkeys(MORE)} != {**settings, **dict.fromkeys(MORE)}:
                raise Problem(f"{self.folder} holds a contest with other settings; give another --out")
            if settings["budget"] < before["budget"]:
                raise Problem(f"{self.folder} holds a contest with --budget {before['budget']:g}, which can only grow, "
                              f"got {settings['budget']:g}", code=2)  # fmt: skip
        write(path, json.dumps(settings, indent=1).encode() + b"\n")

    def _settings(self) -> JsonObject:
        """The options as config.json has them; where the data are stays as it was said at first, as it is sealed.

        Settings that contests of earlier versions lack are written where they are not the defaults.
        """
        path, study, before = self.folder / "config.json", self.options.study, None
        if path.exists():
            before, stored = self._stored(path)
            study = study.at_places(stored)
        settings = {"recipe": self.recipe, **dataclasses.asdict(dataclasses.replace(self.options, study=study))}
        for name in ("out", "accept_edits", "workers", "storage"):  # how it is run, not what is
            del settings[name]
        if self.options.pbt == PopulationSettings():
            del settings["pbt"]
        if before is not None:
            settings["study"] = as_written(settings["study"], before["study"], dataclasses.asdict(stored))
        read: JsonObject = json.loads(json.dumps(settings, default=str))  # paths as text, tuples as lists
        return read

    def _stored(self, path: Path) -> tuple[JsonObject, Any]:
        """The settings that the folder holds, and the study among them."""
        try:
            settings: JsonObject = json.loads(read_bytes(path))
            if (expected := missing(settings, CONFIG)) is not None:
                raise ValueError(f"expected {expected}")
            study = read_typed(type(self.options.study), settings["study"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise Problem(f"{path} is no configuration of a contest of this revtune: {reason(error)}") from error
        return settings, study

    @property
    def command(self) -> str:
        """What goes on with the contest."""
        return f"the same command with --out {shlex.quote(str(self.folder))}"
