"""The options of commands, typed, and how they are read from a command line."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import tyro

from revtune.program.errors import Problem
from revtune.program.files import check_spelling
from revtune.program.tasks.task import Size


def parse(
    kind: Any, arguments: list[str], command: str, *, about: str | None = None, default: Any = None, flat: bool = True
) -> Any:
    """A dataclass or a function's arguments from a command line, options without group names before them if `flat`."""
    settings = {} if default is None else {"default": default}
    config = (tyro.conf.OmitArgPrefixes,) if flat else ()
    options = tyro.cli(kind, args=arguments, prog=f"revtune {command}", description=about, config=config, **settings)
    check_paths(options)
    return options


def check_paths(options: Any) -> None:
    """Raise `Problem` for the first path in a dataclass, or in those and in tuples inside it, that is no UTF-8."""
    if isinstance(options, Path):
        check_spelling(options)
    elif isinstance(options, tuple):
        for each in options:
            check_paths(each)
    elif dataclasses.is_dataclass(options):
        for field in dataclasses.fields(options):
            check_paths(getattr(options, field.name))


def size_of(arguments: list[str], larger: Size = "paper") -> Size:
    """The value of `--size`, which decides what the other options' defaults are: small, or one that is larger."""
    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    given.add_argument("--size", default="small")
    size = given.parse_known_args(arguments)[0].size
    if size not in ("small", larger):
        raise Problem(f"--size must be small or {larger}, got {size}", code=2)
    return cast(Size, size)


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Write text with the best weights of a run."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    prompt: str = ""
    """Text to go on from; without it, a new line begins."""
    length: int = 600
    """Tokens to write: bytes, or words at word level."""
    temperature: float = 0.7
    """Below 1 is safer than what was learned, above 1 wilder; 0 takes the likeliest token always."""
    seed: int = 1
    """Seed of the draws."""
    accept_edits: bool = False
    """Take the run's settings and vocabulary as they are, though they were edited since it learnt."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure the best weights of a run on held-out text."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    split: Literal["valid", "test", "both"] = "both"
    """Which text."""
    file: Path | None = None
    """The text that the run learnt, where it has been moved."""
    data: Path | None = None
    """The folder with data sets that the run learnt from, where it has been moved."""
    accept_edits: bool = False
    """Take the run's settings and vocabulary as they are, though they were edited since it learnt."""
