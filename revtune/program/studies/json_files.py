"""JSON that runs and contests left in their folders: read whole, or refused by a sentence that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from revtune.program.errors import Problem
from revtune.program.files import regular

Facts = dict[str, Any]
"""What a JSON object holds, by name."""


Like = dict[str, Any]
"""What it must hold at least: kinds by name, `float` for any number, or such a dictionary again."""


def facts_in(path: Path, like: Like) -> Facts:
    """The JSON object that a file is.

    Raises:
        Problem: it is none, or one that lacks something.
    """
    return parsed(regular(path).read_bytes(), like, path)


def facts_by_line(path: Path, like: Like) -> list[Facts]:
    """The JSON objects of a file, one a line.

    Raises:
        Problem: there is none, the last has no end, or one is damaged.
    """
    *whole, rest = regular(path).read_bytes().split(b"\n")
    if rest or not whole:
        what = f"line {len(whole) + 1} has no end" if rest else "it is empty"
        raise Problem(f"{path} is damaged: {what}, expected a JSON object a line")
    return [parsed(line, like, path, number) for number, line in enumerate(whole, 1)]


def parsed(content: bytes, like: Like, path: Path, line: int | None = None) -> Facts:
    """The JSON object that a file, or a line of it, holds.

    Raises:
        Problem: it holds none, or one that lacks something.
    """
    where = f"{path} is damaged: " if line is None else f"{path} is damaged in line {line}: "
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Problem(f"{where}expected a JSON object, got {content[:40]!r} ... ({error})") from error
    if (what := lacking(found, like)) is not None:
        raise Problem(f"{where}expected {what}, got {str(found)[:60]}")
    whole: Facts = found
    return whole


def lacking(found: Any, like: Any, name: str = "") -> str | None:
    """What is lacking first, in words; None when nothing is."""
    if not isinstance(like, dict):
        kinds = (int, float) if like is float else (like,)
        return None if type(found) in kinds else f"{name} ({'a number' if like is float else like.__name__})"
    if not isinstance(found, dict):
        return f"{name} (an object)" if name else "a JSON object"
    told = (lacking(found.get(key), kind, f"{name}.{key}" if name else key) for key, kind in like.items())
    return next((one for one in told if one is not None), None)
