"""Tensors in whatever a model returns: tuples, named tuples, lists, dictionaries and dataclasses of them, nested."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor


def mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same tree with a function applied to each tensor; what is no tensor stays."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(function, one) for one in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(mapped(function, one) for one in tree)
    if isinstance(tree, dict):
        return type(tree)((key, mapped(function, one)) for key, one in tree.items())
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        own = {one.name: getattr(tree, one.name) for one in dataclasses.fields(tree) if one.init}
        found = {name: mapped(function, value) for name, value in own.items()}
        return tree if all(found[name] is own[name] for name in own) else dataclasses.replace(tree, **found)
    return tree


def tensors(tree: Any, *, floating: bool = True) -> list[Tensor]:
    """The tensors of a tree in order, perhaps those of floating-point numbers alone."""
    found: list[Tensor] = []

    def see(one: Tensor) -> Tensor:
        if one.is_floating_point() or not floating:
            found.append(one)
        return one

    mapped(see, tree)
    return found
