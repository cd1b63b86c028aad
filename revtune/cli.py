"""The program `revtune`.

    revtune train [RECIPE] [options]    learn a text; without a recipe, Python's standard library
    revtune train --resume RUN          go on with a run that was stopped
    revtune generate RUN                write text with what a run has learned
    revtune translate RUN               sentences of a file, or typed in, with a translator that has been learnt
    revtune evaluate RUN                its loss on held-out data, and BLEU if it translates
    revtune compare RECIPE              ways of tuning hyperparameters, each with the same time
    revtune bench memory | speed        memory and time against torch's own layers
    revtune bench tuning                time and memory of tuning against not tuning
    revtune doctor                      what this machine and installation offer

`revtune train --help` lists recipes and options, and so for each command.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from revtune.errors import BackendError, NonFiniteError, ReversalError, SettingError, StateRangeError
from revtune.problem import Problem

if TYPE_CHECKING:
    from revtune.config import Config, Size
    from revtune.options import Train
    from revtune.run import Run
    from revtune.task import Split

EXTRAS = {"optuna": "search", "kornia": "augment", "sacrebleu": "translate", "tokenizers": "translate"}
PROGRAM_NEEDS = {"tyro", "rich", "safetensors", "datasets", "matplotlib", "numpy", "shtab", "docstring_parser"}
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and give its exit code: 0, 1 for a problem, 2 for a wrong command line, 130 when stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with contextlib.suppress(AttributeError, ValueError):
        cast(Any, sys.stdout).reconfigure(errors="replace")
    try:
        dispatch(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("revtune: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        let_go_of_output()
    except Exception as error:
        if (told := sentence(error)) is None:
            raise
        let_go_of_output()
        print(f"revtune: {told}", file=sys.stderr)
        return error.code if isinstance(error, Problem) else 1
    return 0


def sentence(error: Exception) -> str | None:
    """What a person is told of an error; None for a mistake of this program's, which shows its traceback."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, Problem | NonFiniteError | ReversalError | StateRangeError):
        return str(error)
    if isinstance(error, BackendError | SettingError):
        return first
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"cannot read or write: {place}{error.strerror or first}"
    if isinstance(error, ImportError):
        return missing_package(error, first)
    if isinstance(error, RecursionError):
        return f"what was read is nested too deeply: {first}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in first for word in NO_MEMORY)):
        return f"the memory does not suffice: {first}"
    return None


def missing_package(error: ImportError, reason: str) -> str | None:
    """What a person is told of a package that is missing or broken; None when it is this one."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "revtune"):
        return None
    if isinstance(error, ModuleNotFoundError) and (package in PROGRAM_NEEDS or package in EXTRAS):
        extra = EXTRAS.get(package, "program")
        return f"{error.name} is missing; pip install 'revtune[{extra}]' installs it"
    return f"{package} cannot be imported: {reason}"


def let_go_of_output() -> None:
    """Have what could not be written forgotten, lest Python complains of it when it ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def dispatch(arguments: list[str]) -> None:
    """Hand the rest of a command line to the command that it begins with."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print((__doc__ or "").strip())
        return
    if arguments[0] == "--version":
        print(f"revtune {importlib.import_module('revtune').__version__}")
        return
    if arguments[0] not in COMMANDS:
        raise Problem(f"there is no command {arguments[0]!r}; there are {', '.join(COMMANDS)}", code=2)
    COMMANDS[arguments[0]](arguments[1:])


def parse(
    kind: Any, arguments: list[str], command: str, *, about: str | None = None, default: Any = None, flat: bool = True
) -> Any:
    """A dataclass or a function's arguments from a command line, options without group names before them if `flat`."""
    import tyro

    settings = {} if default is None else {"default": default}
    config = (tyro.conf.OmitArgPrefixes,) if flat else ()
    return tyro.cli(kind, args=arguments, prog=f"revtune {command}", description=about, config=config, **settings)


def train(arguments: list[str]) -> None:
    """Learn a text, or go on learning it."""
    from revtune import recipes
    from revtune import train as training
    from revtune.config import check
    from revtune.report import Report

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
    from revtune import recipes

    recipes.find(name).run(study_options(name, arguments))


def study_options(name: str, arguments: list[str]) -> Any:
    """The options of such a recipe."""
    from revtune import recipes

    recipe = recipes.find(name)
    chosen = translator_of(arguments) if hasattr(recipe, "translates") else {}
    default = recipe.Options(study=recipe.recipe(full="--full" in arguments, **chosen))
    about = f"Recipe {name}. {recipe.__doc__}"
    return parse(recipe.Options, arguments, f"train {name}", about=about, default=default, flat=False)


def translator_of(arguments: list[str]) -> dict[str, str]:
    """The values of `--model` and `--unit`, which decide what a translator's other defaults are."""
    from revtune.config import Model
    from revtune.pairs import Unit

    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    known = {"model": get_args(Model), "unit": get_args(Unit)}
    for option in known:
        given.add_argument(f"--{option}", nargs="?")
    told = vars(given.parse_known_args(arguments)[0])
    return {option: told[option] for option, values in known.items() if told[option] in values}


def tuned(name: str, arguments: list[str]) -> None:
    """Learn a task whose hyperparameters are tuned."""
    from revtune import recipes
    from revtune.tuned_train import Options, start

    recipe, size = recipes.find(name), size_of(arguments)
    study = recipe.study(size)
    about = f"Recipe {name}. {recipe.__doc__}"
    default = Options(study=study, size=size)
    kind: Any = Options
    start(name, parse(kind[type(study)], arguments, f"train {name}", about=about, default=default, flat=False))


def train_options(name: str, arguments: list[str]) -> Train:
    """The options of `revtune train`, whose defaults are a recipe's."""
    from revtune import recipes
    from revtune.options import Train

    size = size_of(arguments)
    about = f"Recipe {name}. There are:\n\n{recipes.overview()}"
    default = Train(config=recipes.find(name).recipe(size), size=size)
    options: Train = parse(Train, arguments, f"train {name}", about=about, default=default)
    return options


def size_of(arguments: list[str]) -> Size:
    """The value of `--size`, which decides what the other options' defaults are."""
    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    given.add_argument("--size", default="small")
    size = given.parse_known_args(arguments)[0].size
    if size not in ("small", "paper"):
        raise Problem(f"--size must be small or paper, got {size}", code=2)
    return cast("Size", size)


def at_home(config: Config) -> Config:
    """The configuration with its paths made absolute, to be found from any folder later."""
    text = config.text
    if text.file is not None and text.source != "file":
        raise Problem(f"recipe {config.recipe} reads no file; revtune train text --file {text.file} does", code=2)
    file, data = (path and path.absolute() for path in (text.file, text.data))
    return dataclasses.replace(config, text=dataclasses.replace(text, file=file, data=data))


def resume(arguments: list[str]) -> None:
    """Go on with a run."""
    from revtune import recipes
    from revtune import train as training
    from revtune.data import regular
    from revtune.report import Report
    from revtune.run import Run

    if len(arguments) == 1 and "=" in arguments[0]:
        arguments = arguments[0].split("=", 1)
    if len(arguments) != 2 or arguments[0] != "--resume":
        raise Problem("--resume takes a run's folder and no other option, the run knows its own", code=2)
    run = Run(Path(arguments[1]))
    regular(run.folder / "config.json")
    refuse_other(run.folder, "train --resume")
    if recipe := recipes.study_in(run.folder):
        recipe.resume(run.folder)
        return
    with Report(run.config()).shown() as report:
        training.resume(run, report)
    finish(run)


def finish(run: Run) -> None:
    """Say what a finished run came to, show a sample, and what to do next."""
    from revtune import sample
    from revtune.report import measure

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


def opened(folder: Path) -> Run:
    """A run to use as it is, on as many threads as it was trained on."""
    import torch

    from revtune.run import Run

    run = Run(folder)
    torch.set_num_threads(run.config().learning.threads)
    return run


def refuse_other(folder: Path, command: str) -> None:
    """Raise `Problem` for a folder that a command does not take, with whose it is and what takes it."""
    from revtune import recipes

    takers = recipes.takers(folder)
    if takers and command not in takers:
        whose, others = recipes.recipe_in(folder), ", ".join(f"revtune {taker} {folder}" for taker in takers)
        raise Problem(f"{folder} is of recipe {whose}, and revtune {command} does not take it; these do: {others}")


def generate(arguments: list[str]) -> None:
    """Write text with a run's best weights."""
    from revtune import sample
    from revtune.config import SEEDS
    from revtune.options import Generate

    options: Generate = parse(Generate, arguments, "generate")
    refuse_other(options.run, "generate")
    if options.length < 1 or not 0 <= options.temperature < math.inf:
        raise Problem("--length must be at least 1 and --temperature at least 0", code=2)
    if options.seed not in SEEDS:
        raise Problem(f"--seed must be from -2^63 to 2^63 - 1, got {options.seed}", code=2)
    run = opened(options.run)
    model, vocabulary = run.model(), run.vocabulary()
    if unknown := vocabulary.unknown(options.prompt):
        print(f"revtune: read as <unk>, not in the vocabulary: {' '.join(unknown)}", file=sys.stderr)
    print(options.prompt, end=" " if vocabulary.unit == "word" and options.prompt else "")
    for piece in sample.text(
        model, vocabulary, options.prompt, length=options.length, temperature=options.temperature, seed=options.seed
    ):
        print(piece, end="", flush=True)
    print()


def evaluate(arguments: list[str]) -> None:
    """Print a run's loss on held-out data."""
    from revtune import recipes
    from revtune.evaluate import held_out_loss
    from revtune.options import Evaluate
    from revtune.report import measure

    options: Evaluate = parse(Evaluate, arguments, "evaluate")
    refuse_other(options.run, "evaluate")
    splits: tuple[Split, ...] = ("valid", "test") if options.split == "both" else (options.split,)
    if recipes.tuned_in(options.run):
        evaluate_tuned(options.run, splits)
        return
    if recipes.translates_in(options.run):
        evaluate_translation(options.run, splits)
        return
    run = opened(options.run)
    unit = run.config().text.unit
    for split in splits:
        loss = held_out_loss(run, split)
        print(f"{split}: {measure(unit, loss)} ({loss:.4f} nats a {unit})")


def evaluate_translation(folder: Path, splits: tuple[Split, ...]) -> None:
    """Print the perplexity of a translator, and its BLEU on the test sentences."""
    from revtune.translating import Decoding
    from revtune.translation_data import task_of
    from revtune.translation_run import opened, scored
    from revtune.tuned_report import measure

    learned = opened(folder)
    task, model = task_of(folder, learned.study), learned.model
    for split in splits:
        print(f"{split}: {measure(task.measure, task.evaluate(model, split))}")
    if "test" in splits:
        found = scored(task, model, Decoding())
        print(f"test: BLEU {found['bleu']:.2f} by beam, {found['greedy_bleu']:.2f} greedy ({found['signature']})")


def translate(arguments: list[str]) -> None:
    """Translate sentences with a run's best weights."""
    from revtune.translate import Options
    from revtune.translate import translate as translated

    options: Options = parse(Options, arguments, "translate")
    refuse_other(options.run, "translate")
    translated(options)


def evaluate_tuned(folder: Path, splits: tuple[Split, ...]) -> None:
    """Print the figures of a run whose hyperparameters were tuned."""
    from revtune.tuned_report import measure
    from revtune.tuned_train import opened

    task, model = opened(folder)
    for split in splits:
        print(f"{split}: {measure(task.measure, task.evaluate(model, split))}")


def compare(arguments: list[str]) -> None:
    """Compare ways of tuning on a recipe's task."""
    from revtune import recipes

    known = [name for name in recipes.names() if recipes.is_tuned(name)]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("revtune compare RECIPE [options]: ways of tuning hyperparameters, each with the same time\n")
        print(recipes.overview(known))
        print("\nrevtune compare RECIPE --help lists the options: --budget, --contestants, --seeds, --out and others")
        return
    name = arguments[0]
    if name not in known:
        raise Problem(f"{why_not(name)}; revtune compare takes {', '.join(known)}", code=2)
    from revtune.compare import run
    from revtune.contest import Options

    recipe, size = recipes.find(name), size_of(arguments)
    study, kind, about = recipe.study(size), cast(Any, Options), f"Recipe {name}. {recipe.__doc__}"
    default = Options(study=study, size=size)
    run(name, parse(kind[type(study)], arguments[1:], f"compare {name}", about=about, default=default, flat=False))


def why_not(name: str) -> str:
    """Why a recipe cannot be compared."""
    from revtune import recipes

    if name not in recipes.names():
        return f"there is no recipe {name!r}"
    if hasattr(recipes.find(name), "tunes"):
        return f"recipe {name} tunes in an experiment of its own, which revtune train {name} runs"
    return f"recipe {name} tunes no hyperparameters"


def bench(arguments: list[str]) -> None:
    """Run a measurement by name."""
    if arguments and arguments[0] in ("-h", "--help"):
        print("revtune bench memory [--help]: memory of whole training steps against torch's own layers")
        print("revtune bench speed [--help]: time of bare layers and whole training steps against torch's own layers")
        print("revtune bench tuning [--help]: time and memory of steps that tune against those of the plain network")
        return
    if not arguments or arguments[0] not in BENCHES:
        known, given = " or ".join(BENCHES), arguments[0] if arguments else "nothing"
        raise Problem(f"revtune bench measures {known}, got {given}", code=2)
    module = importlib.import_module(BENCHES[arguments[0]])
    parse(getattr(module, arguments[0]), arguments[1:], f"bench {arguments[0]}")


def doctor(arguments: list[str]) -> None:
    """Print what this machine and installation offer."""
    from revtune.doctor import lines

    if arguments:
        raise Problem(f"revtune doctor takes no arguments, got {' '.join(arguments)}", code=2)
    for line in lines():
        print(line)


BENCHES = {"memory": "revtune.bench", "speed": "revtune.speed", "tuning": "revtune.costs"}
"""What is measured, and the module whose function of that name does it."""
COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "generate": generate,
    "translate": translate,
    "evaluate": evaluate,
    "compare": compare,
    "bench": bench,
    "doctor": doctor,
}

if __name__ == "__main__":
    sys.exit(main())
