"""`revtune train`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast, get_args

from revtune.program import recipes
from revtune.program.cli.folders import check_moved, kind_of
from revtune.program.cli.options import check_paths, parse, size_of
from revtune.program.data.pair_sources import PairUnit
from revtune.program.errors import Problem
from revtune.program.language import train as text
from revtune.program.launcher import refuse_launched
from revtune.program.layers import Model
from revtune.program.runs import tracking
from revtune.program.runs.tracking import Tracked
from revtune.program.studies import tuned
from revtune.program.studies.output_dropout import experiment as output_dropout
from revtune.program.studies.repeat import study as repeat
from revtune.program.translation import run as translation


def train(arguments: list[str]) -> None:
    """Start a run of a recipe, or go on with one in its folder."""
    if any(word.partition("=")[0] == "--resume" for word in arguments):
        resume(arguments)
        return
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if named else recipes.DEFAULT
    runner, options = runner_and_options(name, arguments[named:])
    if runner is not text:
        refuse_launched(f"revtune train {name}")
    runner.start(name, options)


def resume(arguments: list[str]) -> None:
    """Go on with the run in a folder."""
    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--resume", "--file", "--data", "--track"):
        given.add_argument(option, nargs="?", const="")
    given.add_argument("--accept-edits", action="store_true")
    options, others = given.parse_known_args(arguments)
    if others or not options.resume or "" in (options.file, options.data, options.track):
        known = "but --file TEXT, --data FOLDER, --track NAME and --accept-edits, the run knows its own"
        raise Problem(f"--resume takes a run's folder and no other option {known}", code=2)
    folder, *moved = (path and Path(path) for path in (options.resume, options.file, options.data))
    for path in (folder, *moved):
        check_paths(path)
    kind = kind_of(folder, "train --resume")
    check_moved(kind, folder, *moved)
    if kind != "text":
        refuse_launched(f"a run of kind {kind}")
    places = {name: path for name, path in zip(("file", "data"), moved, strict=True) if path is not None}
    tracked = {} if options.track is None else {"track": tracker(options.track, kind)}
    RUNNERS[kind][0].resume(folder, accept_edits=options.accept_edits, **places, **tracked)


def tracker(name: str, kind: recipes.Kind) -> Tracked:
    """The tracker of a name, for runs of a kind.

    Raises:
        Problem: there is none, it is not installed, or runs of this kind have none.
    """
    if name not in get_args(Tracked):
        raise Problem(f"--track must be one of {', '.join(get_args(Tracked))}, got {name}", code=2)
    if kind in ("repeat", "output_dropout"):
        raise Problem(f"--track is for single runs; recipe {kind} is a study of many", code=2)
    tracking.check(named := cast(Tracked, name))
    return named


def runner_and_options(name: str, arguments: list[str]) -> tuple[Runner, Any]:
    """What runs a recipe, and the options that a command line gives it; the recipe's settings are their defaults."""
    recipe = recipes.find(name)
    runner, defaults = RUNNERS[recipe.kind]
    kind, default = defaults(recipe, arguments)
    is_text = recipe.kind == "text"  # the default recipe's kind: its help lists all recipes
    about = f"There are:\n\n{recipes.overview()}" if is_text else recipe.__doc__
    about = f"Recipe {name}. {about}"
    options = parse(kind, arguments, f"train {name}", about=about, default=default, flat=False)
    if isinstance(options, text.Options):
        text.check_rates(options, default.config)
    return runner, options


Defaults = tuple[Any, Any]
"""A class of options, and one of it."""


def text_defaults(recipe: ModuleType, arguments: list[str]) -> Defaults:
    """For a language model."""
    size = size_of(arguments)
    return text.Options, text.Options(config=recipe.recipe(size), size=size)


def tuned_defaults(recipe: ModuleType, arguments: list[str]) -> Defaults:
    """For a task whose hyperparameters are tuned; its settings are of a class of their own."""
    size = size_of(arguments)
    study, kind = recipe.study(size), cast(Any, tuned.Options)
    return kind[type(study)], kind(study=study, size=size)


def signal_defaults(recipe: ModuleType, arguments: list[str]) -> Defaults:
    """For a net that reads signals, of which nothing is tuned."""
    size = size_of(arguments, "full")
    study, kind = recipe.study(size), cast(Any, tuned.Options)
    return kind[type(study)], kind(study=study, size=size, method="plain")


def translation_defaults(recipe: ModuleType, arguments: list[str]) -> Defaults:
    """For a translator, by model and unit too."""
    study = recipe.recipe(full="--full" in arguments, **model_and_unit(arguments))
    return translation.Options, translation.Options(study=study)


def model_and_unit(arguments: list[str]) -> dict[str, str]:
    """The values of `--model` and `--unit`, as far as they are given and can be."""
    known = {"model": get_args(Model), "unit": get_args(PairUnit)}
    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in known:
        given.add_argument(f"--{option}", nargs="?")
    values = vars(given.parse_known_args(arguments)[0])
    return {option: values[option] for option, possible in known.items() if values[option] in possible}


def repeat_defaults(recipe: ModuleType, arguments: list[str]) -> Defaults:
    """For the study of the repeat task."""
    return repeat.Options, repeat.Options(study=recipe.recipe(full="--full" in arguments))


def output_dropout_defaults(recipe: ModuleType, arguments: list[str]) -> Defaults:
    """For the schedule experiment."""
    return output_dropout.Options, output_dropout.Options(study=recipe.recipe(full="--full" in arguments))


class Runner(Protocol):
    """What runs recipes of a kind."""

    def start(self, name: str, options: Any) -> object:
        """Start a run of a recipe."""

    @property
    def resume(self) -> Callable[..., object]:
        """Goes on with the run in a folder, where that or `data`, or a text's `file`, are now."""


RUNNERS: dict[recipes.Kind, tuple[Runner, Callable[[ModuleType, list[str]], Defaults]]] = {
    "text": (text, text_defaults),
    "tuned": (tuned, tuned_defaults),
    "translation": (translation, translation_defaults),
    "repeat": (repeat, repeat_defaults),
    "output_dropout": (output_dropout, output_dropout_defaults),
    "signal": (tuned, signal_defaults),
}
"""What runs recipes of a kind, and the defaults of its options by recipe and command line."""
