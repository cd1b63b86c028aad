"""Typed settings read from JSON, and numbers in them that cannot be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from revtune.program.errors import Problem

T = TypeVar("T")


LARGEST = 1e30


MOST_THREADS = 1024


SEEDS = range(-(2**63), 2**63)


def _typed(kind: Any, values: dict[str, Any]) -> Any:
    """A dataclass of values that are what its annotations say."""
    for name, wanted in get_type_hints(kind).items():
        if name in values and not _is(values[name], wanted):
            raise TypeError(f"{name} must be {getattr(wanted, '__name__', wanted)}, got {values[name]!r}")
    return kind(**values)


def read_typed(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass from the JSON of `dataclasses.asdict`, dataclasses and paths inside it among them.

    Raises:
        TypeError: a value is not what its annotation says, is missing, or unknown.
    """
    found = dict(values)
    for name, wanted in get_type_hints(kind).items():
        if name in found and dataclasses.is_dataclass(wanted):
            found[name] = read_typed(cast(type, wanted), found[name])
        elif wanted == Path | None and isinstance(found.get(name), str):
            found[name] = Path(found[name])
        elif get_origin(wanted) is tuple and isinstance(found.get(name), list):
            found[name] = tuple(found[name])
    read: T = _typed(kind, found)
    return read


def _is(value: Any, wanted: Any) -> bool:
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if get_origin(wanted) is tuple:
        return type(value) is tuple and all(_is(one, get_args(wanted)[0]) for one in value)
    if isinstance(wanted, UnionType):
        return any(_is(value, one) for one in get_args(wanted))
    if wanted is float:
        return type(value) is float or type(value) is int and math.isfinite(value)
    return "\0" not in str(value) if wanted is Path and isinstance(value, Path) else type(value) is wanted


def _every(group: object, names: str, right: Callable[[Any], bool], wanted: str) -> None:
    for name in names.split():
        if not right(getattr(group, name)):
            raise Problem(f"--{name.replace('_', '-')} must be {wanted}, got {getattr(group, name)}", code=2)


MAY_BE_0 = ("warmup", "momentum", "entropy", "seed")


def check_numbers(*groups: Any, prefix: str = "") -> None:
    """Raise `Problem` for the first number in these settings that no run can have; `prefix` is their options'."""
    for group in groups:
        for field in dataclasses.fields(group):
            value, option = getattr(group, field.name), f"--{prefix}{field.name.replace('_', '-')}"
            if type(value) not in (int, float):
                continue
            wanted = "at least 0" if field.name in MAY_BE_0 else "at least 1" if type(value) is int else "above 0"
            if not (value >= 0 if field.name in MAY_BE_0 else value >= 1 if type(value) is int else value > 0):
                raise Problem(f"{option} must be {wanted}, got {value}", code=2)
            if value >= 2**31:
                raise Problem(f"{option} must be below 2^31, got {value}", code=2)
            if field.name == "threads" and value > MOST_THREADS:
                raise Problem(f"{option} must be at most {MOST_THREADS}, got {value}", code=2)
