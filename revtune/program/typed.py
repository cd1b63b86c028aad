"""Settings as typed dataclasses: read from JSON, and their values checked before a run begins."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from revtune.program.errors import Problem

T = TypeVar("T")

LARGEST = 1e30
"""Of rates and norms: a float32 ends at 3.4e38, and these are factors in products."""

MOST_THREADS = 1024
"""More than a machine has; OpenMP ends the process when it cannot start as many as it is told to."""

SEEDS = range(-(2**63), 2**63)
"""What torch's generators take."""

TOO_MANY = 2**31
"""No count comes near this, the first that is no int32."""

MAY_BE_0 = ("warmup", "momentum", "entropy", "seed")
"""Names of the settings whose 0 means something; every other number must be above it."""


def json_object(value: Any, what: str) -> dict[str, Any]:
    """A value that JSON holds, of which `what` is to be told, as the object that it must be.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{what} must be a JSON object, got {value!r:.60}")
    return value


def read_typed(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass from the JSON of `dataclasses.asdict`, with the dataclasses, tuples and paths inside it.

    Raises:
        TypeError: a value is not what its annotation says, is missing, or unknown.
    """
    read = dict(json_object(values, kind.__name__))
    for name, annotation in get_type_hints(kind).items():
        if name in read:
            read[name] = _from_json(read[name], annotation)
    return typed(kind, read)


def _from_json(value: Any, annotation: Any) -> Any:
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return read_typed(annotation, value)
    if annotation == Path | None and isinstance(value, str):
        return Path(value)
    if get_origin(annotation) is tuple and isinstance(value, list):
        return tuple(_from_json(part, get_args(annotation)[0]) for part in value)
    return value


def typed(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass of values that are what its annotations say.

    Raises:
        TypeError: one is not, is missing, or unknown.
    """
    known = [field.name for field in dataclasses.fields(cast(Any, kind))]
    if unknown := [name for name in values if name not in known]:
        raise TypeError(f"{kind.__name__} has no setting {unknown[0]!r}")
    for name, annotation in get_type_hints(kind).items():
        if name in values and not _fits(values[name], annotation):
            raise TypeError(f"{name} must be {getattr(annotation, '__name__', annotation)}, got {values[name]!r}")
    return kind(**values)


def _fits(value: Any, annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    if get_origin(annotation) is tuple:
        return type(value) is tuple and all(_fits(part, get_args(annotation)[0]) for part in value)
    if get_origin(annotation) in (Union, UnionType):
        return any(_fits(value, kind) for kind in get_args(annotation))
    if annotation is float:
        return type(value) is float or type(value) is int and math.isfinite(value)
    if annotation is Path and isinstance(value, Path):  # pathlib makes a PosixPath, whose type is not Path
        return "\0" not in str(value)
    return type(value) is annotation


def reason(error: Exception) -> str:
    """What is wrong with what was read, in words: a KeyError's message is but the name of what is missing."""
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) and error.args else str(error)


@contextlib.contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Have what the block says of an option say it of the file that the setting was read from instead.

    Raises:
        Problem: as "config.json: lr must be above 0" where it was "--lr must be above 0", with exit code 1.
    """
    try:
        yield
    except Problem as error:
        if not str(error).startswith("--"):
            raise
        settings = re.sub(r"--([a-z][a-z.-]*)", lambda option: option[1].replace("-", "_"), str(error))
        raise Problem(f"{path}: {settings}") from error


def check_each(group: object, names: str, right: Callable[[Any], bool], wanted: str) -> None:
    """Raise `Problem` for the first of these settings, named with spaces between, that is not right."""
    for name in names.split():
        if not right(getattr(group, name)):
            raise Problem(f"--{name.replace('_', '-')} must be {wanted}, got {getattr(group, name)}", code=2)


def check_numbers(*groups: Any, prefix: str = "") -> None:
    """Raise `Problem` for the first number in these settings that no run can have.

    Args:
        groups: dataclasses.
        prefix: of their options.
    """
    for group in groups:
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if type(value) in (int, float):
                _check_number(value, field.name, f"--{prefix}{field.name.replace('_', '-')}")


def _check_number(value: float, name: str, option: str) -> None:
    if name in MAY_BE_0:
        right, wanted = value >= 0, "at least 0"
    elif type(value) is int:
        right, wanted = value >= 1, "at least 1"
    else:
        right, wanted = value > 0, "above 0"
    if not right:
        raise Problem(f"{option} must be {wanted}, got {value}", code=2)
    if value >= TOO_MANY:
        raise Problem(f"{option} must be below 2^31, got {value}", code=2)
    if name == "threads" and value > MOST_THREADS:
        raise Problem(f"{option} must be at most {MOST_THREADS}, got {value}", code=2)
