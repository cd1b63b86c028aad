"""Settings as a page lists them, and the command that gives them again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from revtune.program.files import read_text
from revtune.program.runs.folder import command_line
from revtune.program.runs.seals import NEAR
from revtune.program.runs.tracking import flat

PREFIXED = ("stn", "delta", "pbt")
"""Groups of settings whose options have their name before them; those of all others stand alone."""

UNASKED = ("recipe", "size", "name", "replays")
"""Settings that a recipe's name, `--size` or `--replay` decides."""


def listed(path: Path) -> dict[str, str]:
    """The settings in a file whose JSON is known to be whole, those of a group with its name before theirs."""
    settings = {name: value for name, value in json.loads(read_text(path)).items() if name != NEAR}
    named = flat(settings, between=".").items()
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in named}


def repeating(words: list[str], settings: Any, default: Any) -> str:
    """The command line that gives settings anew.

    Args:
        words: of the command, before its options.
        settings: a dataclass.
        default: what the command takes where it is told nothing.
    """
    return command_line(*words, *options(settings, default))


def options(settings: Any, default: Any, prefix: str = "") -> Iterator[str]:
    """The options that settings differ from the defaults by, as the command line takes them."""
    for field in dataclasses.fields(settings):
        value, usual = getattr(settings, field.name), getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            yield from options(value, usual, prefix + (f"{field.name}." if field.name in PREFIXED else ""))
        elif value != usual and field.name not in UNASKED:
            yield from option(prefix, field.name.replace("_", "-"), value)


def option(prefix: str, name: str, value: Any) -> Iterator[str]:
    """An option with its value."""
    if isinstance(value, bool):
        yield f"--{prefix}{name}" if value else f"--{prefix}no-{name}"
        return
    yield f"--{prefix}{name}"
    yield from map(str, value) if isinstance(value, tuple) else (str(value),)
