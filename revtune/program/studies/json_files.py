"""JSON that runs and contests left in their folders: read whole, or refused by a sentence that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from revtune.program.errors import Problem
from revtune.program.files import read_bytes

JsonObject = dict[str, Any]

Template = dict[str, Any]
"""What an object must hold at least: types by name, `float` for any number, or such a dictionary again."""


def read_object(path: Path, template: Template) -> JsonObject:
    """The JSON object that a file is.

    Raises:
        Problem: it is none, or one that lacks something.
    """
    return parsed(read_bytes(path), template, path)


def read_lines(path: Path, template: Template) -> list[JsonObject]:
    """The JSON objects of a file, one a line.

    Raises:
        Problem: there is none, the last has no end, or one is damaged.
    """
    *lines, rest = read_bytes(path).split(b"\n")
    if rest or not lines:
        damage = f"line {len(lines) + 1} has no end" if rest else "it is empty"
        raise Problem(f"{path} is damaged: {damage}, expected a JSON object a line")
    return [parsed(line, template, path, number) for number, line in enumerate(lines, 1)]


def parsed(content: bytes, template: Template, path: Path, line: int | None = None) -> JsonObject:
    """The JSON object that a file, or a line of it, holds.

    Raises:
        Problem: it holds none, or one that lacks something.
    """
    where = f"{path} is damaged: " if line is None else f"{path} is damaged in line {line}: "
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Problem(f"{where}expected a JSON object, got {content[:40]!r} ... ({error})") from error
    if (expected := missing(value, template)) is not None:
        raise Problem(f"{where}expected {expected}, got {str(value)[:60]}")
    whole: JsonObject = value
    return whole


def missing(value: Any, template: Any, name: str = "") -> str | None:
    """The first thing of a template that a value lacks, in words; None when nothing is missing."""
    if not isinstance(template, dict):
        kinds = (int, float) if template is float else (template,)
        # by type, as True is an int to isinstance
        return None if type(value) in kinds else f"{name} ({'a number' if template is float else template.__name__})"
    if not isinstance(value, dict):
        return f"{name} (an object)" if name else "a JSON object"
    parts = (missing(value.get(key), part, f"{name}.{key}" if name else key) for key, part in template.items())
    return next((part for part in parts if part is not None), None)


def as_written(settings: JsonObject, before: JsonObject, filled: JsonObject) -> JsonObject:
    """Settings without those that a file of an earlier version lacks, where they are as they are by default.

    Args:
        settings: as they are now.
        before: what the file has.
        filled: that, with defaults for what it lacks.
    """
    return {
        name: as_written(value, before[name], filled[name])
        if isinstance(value, dict) and isinstance(before.get(name), dict)
        else value
        for name, value in settings.items()
        if name in before or value != filled[name]
    }
