"""A text file of yours (--file), as bytes, or as words with --unit word."""

from __future__ import annotations

import dataclasses

from revtune.program.data.text_sources import Text
from revtune.program.language.config import Config
from revtune.program.language.task import LanguageTask
from revtune.program.recipes import stdlib
from revtune.program.tasks.task import Size

kind = "text"

task = LanguageTask


def recipe(size: Size = "small") -> Config:
    """The settings of `stdlib`, over a file; rates are tuned by Delta-STN from hardly any on.

    A file may be so long that bytes want hardly any dropout in so many updates, or so short that they want much.
    """
    base = stdlib.recipe(size)
    return dataclasses.replace(base, recipe="text", text=Text(source="file"), tune="delta", tuned_from=0.005)
