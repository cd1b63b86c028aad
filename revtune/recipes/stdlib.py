"""Python's standard library, its own source as bytes: on every machine, five minutes on two cores."""

from revtune.config import Config, Learning, Net, Size, Text
from revtune.problem import Problem


def recipe(size: Size = "small") -> Config:
    """One RevGRU layer over bytes."""
    if size != "small":
        raise Problem(f"recipe stdlib has one size, small, got {size}", code=2)
    return Config(recipe="stdlib", text=Text(source="stdlib"), net=Net(), learning=Learning())
