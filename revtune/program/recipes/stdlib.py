"""Python's standard library, its own source as bytes: on every machine, five minutes on two cores."""

from __future__ import annotations

from revtune.program.data.text_sources import Text
from revtune.program.errors import Problem
from revtune.program.language.config import Config, Net
from revtune.program.language.learning import Learning
from revtune.program.language.task import LanguageTask
from revtune.program.tasks.task import Size
from revtune.program.tuning import CENTRED

kind = "text"

task = LanguageTask


def recipe(size: Size = "small") -> Config:
    """One RevGRU layer over bytes."""
    if size != "small":
        raise Problem(f"recipe stdlib has one size, small, got {size}", code=2)
    return Config(recipe="stdlib", text=Text(source="stdlib"), net=Net(), learning=Learning(), stn=CENTRED)
