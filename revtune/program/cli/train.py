"""`revtune train`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from revtune.program.cli.folders import refuse_other, study_in
from revtune.program.cli.options import parse, size_of
from revtune.program.errors import Problem

if TYPE_CHECKING:
    from revtune.program.cli.options import Train
    from revtune.program.language.config import Config
    from revtune.program.language.run import Run


def train(arguments: list[str]) -> None:
    """Learn a text, or go on learning it."""
    from revtune.program import recipes
    from revtune.program.language import trainer as training
    from revtune.program.language.config import check
    from revtune.program.language.live import Report

    if any(word.partition("=")[0] == "--resume" for word in arguments):
        resume(arguments)
        return
    named = bool(arguments) and not arguments[0].startswith("-")
    if named and recipes.is_study(arguments[0]):
        study(arguments[0], arguments[1:])
        return
    if named and recipes.is_tuned(arguments[0]):
        tuned(arguments[0], arguments[1:])
        return
    options = train_options(arguments[0] if named else recipes.DEFAULT, arguments[named:])
    check(options.config)
    with Report(options.config).shown() as report:
        run = training.start(at_home(options.config), options.out, report)
    finish(run)


def study(name: str, arguments: list[str]) -> None:
    """Run a recipe that is more than a training run."""
    from revtune.program import recipes

    recipes.find(name).run(study_options(name, arguments))


def study_options(name: str, arguments: list[str]) -> Any:
    """The options of such a recipe."""
    from revtune.program import recipes

    recipe = recipes.find(name)
    chosen = translator_of(arguments) if hasattr(recipe, "translates") else {}
    default = recipe.Options(study=recipe.recipe(full="--full" in arguments, **chosen))
    about = f"Recipe {name}. {recipe.__doc__}"
    return parse(recipe.Options, arguments, f"train {name}", about=about, default=default, flat=False)


def translator_of(arguments: list[str]) -> dict[str, str]:
    """The values of `--model` and `--unit`, which decide what a translator's other defaults are."""
    from revtune.program.data.pairs import Unit
    from revtune.program.language.config import Model

    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    known = {"model": get_args(Model), "unit": get_args(Unit)}
    for option in known:
        given.add_argument(f"--{option}", nargs="?")
    told = vars(given.parse_known_args(arguments)[0])
    return {option: told[option] for option, values in known.items() if told[option] in values}


def tuned(name: str, arguments: list[str]) -> None:
    """Learn a task whose hyperparameters are tuned."""
    from revtune.program import recipes
    from revtune.program.studies.tuned import Options, start

    recipe, size = recipes.find(name), size_of(arguments)
    study = recipe.study(size)
    about = f"Recipe {name}. {recipe.__doc__}"
    default = Options(study=study, size=size)
    kind: Any = Options
    start(name, parse(kind[type(study)], arguments, f"train {name}", about=about, default=default, flat=False))


def train_options(name: str, arguments: list[str]) -> Train:
    """The options of `revtune train`, whose defaults are a recipe's."""
    from revtune.program import recipes
    from revtune.program.cli.options import Train

    size = size_of(arguments)
    about = f"Recipe {name}. There are:\n\n{recipes.overview()}"
    default = Train(config=recipes.find(name).recipe(size), size=size)
    options: Train = parse(Train, arguments, f"train {name}", about=about, default=default)
    return options


def at_home(config: Config) -> Config:
    """The configuration with its paths made absolute, to be found from any folder later."""
    text = config.text
    if text.file is not None and text.source != "file":
        raise Problem(f"recipe {config.recipe} reads no file; revtune train text --file {text.file} does", code=2)
    file, data = (path and path.absolute() for path in (text.file, text.data))
    return dataclasses.replace(config, text=dataclasses.replace(text, file=file, data=data))


def resume(arguments: list[str]) -> None:
    """Go on with a run."""
    from revtune.program.files import regular
    from revtune.program.language import trainer as training
    from revtune.program.language.live import Report
    from revtune.program.language.run import Run

    if len(arguments) == 1 and "=" in arguments[0]:
        arguments = arguments[0].split("=", 1)
    if len(arguments) != 2 or arguments[0] != "--resume":
        raise Problem("--resume takes a run's folder and no other option, the run knows its own", code=2)
    run = Run(Path(arguments[1]))
    regular(run.folder / "config.json")
    refuse_other(run.folder, "train --resume")
    if recipe := study_in(run.folder):
        recipe.resume(run.folder)
        return
    with Report(run.config()).shown() as report:
        training.resume(run, report)
    finish(run)


def finish(run: Run) -> None:
    """Say what a finished run came to, show a sample, and what to do next."""
    from revtune.program.language import sample
    from revtune.program.language.live import measure

    config = run.config()
    best, unit = run.best(), config.text.unit
    words = unit == "word"
    print(f"\nvalidation {measure(unit, best['valid_loss'])}, its best, at step {best['step']}; a sample:\n")
    pieces = sample.text(run.model(), run.vocabulary(), "", length=100 if words else 600, temperature=0.7, seed=1)
    print("".join(pieces).strip("\n") + "\n")
    print(f"the run is in {run.folder}; next:")
    prompt = "def " if config.text.source == "stdlib" else "the market" if words else "The "
    print(f"  revtune generate {run.folder} --prompt '{prompt}'")
    print(f"  revtune evaluate {run.folder}")
