"""What a function or module holds: the modules and tensors that it may use when it is called."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from revtune.reversible.streams.attributes import OF_ALL
from revtune.reversible.streams.reads import installed, read_globals

DEEP = 16
"""Objects and containers in each other that are looked through for modules and functions: lists in lists are two."""

MOST_ITEMS = 1000
"""Items of a list, tuple, dict or set that are looked through."""

_CALLED = (FunctionType, MethodType, partial)
_RUN = (nn.Module, *_CALLED)
_KEPT = (Tensor, *_RUN)
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_CLOSED = (Tensor, type, ModuleType, logging.Logger, logging.Handler, torch.optim.Optimizer)


def held_tensors(holder: Any, seen: set[int]) -> Iterator[Tensor]:
    """The tensors among what `held` finds; arguments as there."""
    return (thing for thing in held(holder, seen) if isinstance(thing, Tensor))


def held(holder: Any, seen: set[int]) -> Iterator[Any]:
    """Tensors, modules and functions in a module's attributes, or a function's closure, defaults or bound arguments.

    What these hold is among them.

    Args:
        holder: the module or function, or anything that one holds.
        seen: ids of what has been looked through, since modules and functions may hold each other in a circle.
    """
    if id(holder) in seen:
        return
    seen.add(id(holder))
    yield holder
    for part in _parts(holder):
        if isinstance(part, _KEPT):
            yield from held(part, seen)


def held_parts(holder: Any, seen: set[int] | None = None, deep: int = DEEP) -> Iterator[tuple[str, Any]]:
    """The modules, with their names, and the functions and objects, without, that a call may run through.

    They are those of a module and within it, and those in a function's closure, defaults, globals or bound arguments;
    and those in attributes of objects and modules, and in lists, tuples, dicts and sets.

    Args:
        holder: the module or function, or anything that one holds.
        seen: ids of what has been looked through.
        deep: objects and containers that may lie in each other.
    """
    seen = set() if seen is None else seen
    if id(holder) in seen:
        return
    seen.add(id(holder))
    if isinstance(holder, nn.Module):
        modules = list(holder.named_modules())
        seen.update(id(module) for _, module in modules)
        yield from modules
        inner = [value for _, module in modules for value in _added(module)]
    elif isinstance(holder, _CONTAINERS):
        inner = _items(holder)
    else:
        yield "", holder
        inner = [*_parts(holder), *_globals(holder), *_attributes(holder)]
    left = deep if isinstance(holder, _RUN) else deep - 1
    for part in inner:
        if isinstance(part, _RUN) or (left and _opened(part)):
            yield from held_parts(part, seen, left)


def _added(module: nn.Module) -> Iterator[Any]:
    """Attributes of a module that not every module has, or that stand in the place of its methods."""
    return (value for name, value in vars(module).items() if name not in OF_ALL)


def _opened(part: Any) -> bool:
    return isinstance(part, _CONTAINERS) or (hasattr(part, "__dict__") and not isinstance(part, _CLOSED))


def _items(container: Any) -> list[Any]:
    if len(container) > MOST_ITEMS:
        return []
    return [*container, *container.values()] if isinstance(container, dict) else list(container)


def compiled(holder: Any) -> bool:
    """Whether code that torch.compile has traced may run in it, which is left as it is."""
    return any(_marked(getattr(part, "__dict__", {})) for _, part in held_parts(holder))


def _marked(own: dict[str, Any]) -> bool:
    return "_torchdynamo_orig_callable" in own or "_orig_mod" in own or "_orig_mod" in own.get("_modules", ())


def _parts(holder: Any) -> list[Any]:
    if isinstance(holder, nn.Module):
        return [*vars(holder).values(), *holder.children()]
    if isinstance(holder, partial):
        return [holder.func, *holder.args, *holder.keywords.values()]
    if isinstance(holder, MethodType):
        return [holder.__self__, holder.__func__]
    if isinstance(holder, FunctionType):
        defaults = (*(holder.__defaults__ or ()), *(holder.__kwdefaults__ or {}).values())
        return [*defaults, *(cell.cell_contents for cell in holder.__closure__ or () if _filled(cell))]
    return []


def _filled(cell: CellType) -> bool:
    """Whether a closure's variable has a value yet; one that is assigned later has none, and to ask raises."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _globals(holder: Any) -> list[Any]:
    """Modules, functions of the user's, objects and containers that a function reads by their global names."""
    if not isinstance(holder, FunctionType):
        return []
    return [value for value in read_globals(holder).values() if not _of_packages(value)]


def _of_packages(value: Any) -> bool:
    return isinstance(value, FunctionType) and installed(value.__module__ or "")


def _attributes(holder: Any) -> list[Any]:
    """What an object holds that is no function and may hold modules, such as a trainer whose method is the encoder."""
    if isinstance(holder, _CALLED + _CLOSED):
        return []
    return list(getattr(holder, "__dict__", {}).values())
