"""Tensors in whatever a model returns: tuples, named tuples, lists and dictionaries of them, nested."""

from __future__ import annotations

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
    return tree


def tensors(tree: Any) -> list[Tensor]:
    """The floating-point tensors of a tree, in order."""
    found: list[Tensor] = []
    mapped(lambda one: found.append(one) or one if one.is_floating_point() else one, tree)  # type: ignore[func-returns-value]
    return found
