"""Tensors in whatever a model returns: tuples, named tuples, lists, dictionaries and dataclasses of them, nested."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import Tensor


def mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same tree with a function applied to each tensor; all else stays."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(function, part) for part in tree))  # named tuples take their fields one by one
    if isinstance(tree, tuple | list):
        return type(tree)(mapped(function, part) for part in tree)
    if isinstance(tree, dict):
        pairs = ((key, mapped(function, part)) for key, part in tree.items())
        return type(tree)(tree.default_factory, pairs) if isinstance(tree, defaultdict) else type(tree)(pairs)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        old = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree) if field.init}
        new = {name: mapped(function, value) for name, value in old.items()}
        return tree if all(new[name] is old[name] for name in old) else dataclasses.replace(tree, **new)
    return tree


def tensors(tree: Any, *, floating: bool = True) -> list[Tensor]:
    """The tensors of a tree in order; with `floating` only those of floating-point or complex numbers."""
    found: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        if is_continuous(tensor) or not floating:
            found.append(tensor)
        return tensor

    mapped(collect, tree)
    return found


def is_continuous(x: Tensor) -> bool:
    """Whether a tensor's numbers can have derivatives: floating-point and complex ones."""
    return x.is_floating_point() or x.is_complex()
