"""`revtune compare`."""

from __future__ import annotations

from typing import Any, cast

from revtune.program import recipes
from revtune.program.cli.options import parse, size_of
from revtune.program.errors import Problem
from revtune.program.studies.compare.compare import run
from revtune.program.studies.compare.contest import Options
from revtune.program.studies.compare.study import study_of


def compare(arguments: list[str]) -> None:
    """Compare ways of tuning on a recipe's task."""
    known = [name for name in recipes.names() if recipes.find(name).kind in ("tuned", "text")]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("revtune compare RECIPE [options]: ways of tuning hyperparameters, each with the same time\n")
        print(recipes.overview(known))
        print("\nrevtune compare RECIPE --help lists the options: --budget, --contestants, --seeds, --out and others")
        return
    if any(argument.split("=")[0] == "--resume" for argument in arguments):
        raise Problem(
            "a contest goes on by the command that began it, with --out and its folder; it has no --resume",
            code=2,
        )
    name = arguments[0]
    if name not in known:
        raise Problem(f"{why_not(name)}; revtune compare takes {', '.join(known)}", code=2)
    recipe, size = recipes.find(name), size_of(arguments)
    study, kind, about = study_of(recipe, size), cast(Any, Options), f"Recipe {name}. {recipe.__doc__}"
    default = Options(study=study, size=size)
    run(name, parse(kind[type(study)], arguments[1:], f"compare {name}", about=about, default=default, flat=False))


def why_not(name: str) -> str:
    """Why a recipe cannot be compared."""
    if name not in recipes.names():
        return f"there is no recipe {name!r}"
    if recipes.find(name).kind == "output_dropout":
        return f"recipe {name} tunes in an experiment of its own, which revtune train {name} runs"
    return f"recipe {name} tunes no hyperparameters"
