"""Names that a function's code reads, and what stands under those of its file."""

from __future__ import annotations

import dis
import os
import sys
from functools import cache, lru_cache
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch

_OF_PACKAGES = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_INSTALLED = (
    os.path.dirname(os.__file__) + os.sep,
    os.path.dirname(torch.__file__) + os.sep,
    os.path.abspath(__file__).removesuffix(os.path.join("reversible", "streams", "reads.py")),
)
"""Folders of Python, of torch, and of this package."""


class Reads(NamedTuple):
    """Names in a function's code, and in that of functions within it.

    Attributes:
        globals: those that it reads of its file.
        names: all of them, and its strings, since one may be that of an attribute.
    """

    globals: tuple[str, ...]
    names: frozenset[str]


@lru_cache(maxsize=1000)
def reads(code: CodeType) -> Reads:
    """Names in code."""
    within = [reads(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    read = [one.argval for one in dis.get_instructions(code) if "GLOBAL" in one.opname or one.opname == "LOAD_NAME"]
    strings = (constant for constant in code.co_consts if isinstance(constant, str))
    return Reads(
        tuple(dict.fromkeys([*read, *(name for inner in within for name in inner.globals)])),
        frozenset({*code.co_names, *strings}.union(*(inner.names for inner in within))),
    )


def read_globals(function: FunctionType) -> dict[str, Any]:
    """What a function reads of its file, unless that is installed."""
    stand = function.__globals__
    if installed(stand.get("__name__", "")):
        return {}
    return {name: stand[name] for name in reads(function.__code__).globals if name in stand}


@cache
def installed(name: str) -> bool:
    """Whether a module, by its name, came with Python, with an installed package or with this one."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return name in sys.builtin_module_names
    return file.startswith(_INSTALLED) or any(folder in file for folder in _OF_PACKAGES)
