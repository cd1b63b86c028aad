"""What stands under names in an object, a class or a file."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

from torch import nn

OF_ALL = frozenset(vars(nn.Module()))
"""Attributes of every module."""

OWN = OF_ALL - {"training", "_parameters", "_buffers", "_modules"}
"""Those of them that are torch's own affair, most of them empty dicts of hooks."""


def attributes(owner: Any) -> dict[str, Any]:
    """What stands under names in a class, a file or an object: in its dict, in slots, and what modules hold."""
    found: dict[str, Any] = dict(getattr(owner, "__dict__", {}))
    if isinstance(owner, type | types.ModuleType):
        return found
    if isinstance(owner, nn.Module):
        for name in OWN | {"training"}:
            found.pop(name, None)
        for held in ("_parameters", "_buffers", "_modules"):
            found |= found.pop(held)
    return found | {name: getattr(owner, name) for name in slots(type(owner)) if hasattr(owner, name)}


def slots(kind: type) -> Iterator[str]:
    """The names of the attributes that objects of a class have in slots."""
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            if name not in ("__dict__", "__weakref__"):
                yield f"_{base.__name__.lstrip('_')}{name}" if private else name


def all_in_state(kind: type) -> bool:
    """Whether objects of a class hold nothing beyond attributes, as those that C code defines may."""
    pointer = object.__basicsize__ // 2
    own = (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0) + len(list(slots(kind)))
    return kind.__itemsize__ == 0 and kind.__basicsize__ <= object.__basicsize__ + pointer * own
