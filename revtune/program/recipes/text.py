"""A text file of yours (--file), as bytes, or as words with --unit word."""

from __future__ import annotations

import dataclasses

from revtune.program.data.text_sources import Text
from revtune.program.language.config import Config, Size
from revtune.program.recipes import stdlib

kind = "text"


def recipe(size: Size = "small") -> Config:
    """The settings of `stdlib`, over a file."""
    return dataclasses.replace(stdlib.recipe(size), recipe="text", text=Text(source="file"))
