"""Names under which classes are saved: those that documents use, so that files outlive moves within the package."""

from __future__ import annotations

import typing
from typing import Any


def publish(door: dict[str, Any], names: list[str]) -> None:
    """Have what a door hands on pickle and print under the door's name, such as `revtune.RevGRU`.

    The price is that `inspect.getsource` does not find the source of such a class: it looks in the door.

    Args:
        door: the door's namespace.
        names: what it hands on.
    """
    for name in names:
        public = door[name]
        if isinstance(public, type) and (own := vars(public).get("__annotations__")):
            hints = typing.get_type_hints(public)  # while the names in them can be looked up
            public.__annotations__ = {key: hints[key] for key in own}
        public._module_source, public.__module__ = public.__module__, door["__name__"]
        if "__firstlineno__" in vars(public):
            del public.__firstlineno__  # of another file: inspect would show the same line of the door
