"""A text file of yours (--file), as bytes, or as words with --unit word."""

import dataclasses

from revtune.config import Config, Size, Text
from revtune.recipes import stdlib


def recipe(size: Size = "small") -> Config:
    """The settings of `stdlib`, over a file."""
    return dataclasses.replace(stdlib.recipe(size), recipe="text", text=Text(source="file"))
