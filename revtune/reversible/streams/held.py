"""What a function or module holds: the modules and tensors that it may use when it is called."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

_CALLED = FunctionType | MethodType | partial


def held_tensors(holder: Any, seen: set[int]) -> Iterator[Tensor]:
    """The tensors among what `held` finds; arguments as there."""
    return (thing for thing in held(holder, seen) if isinstance(thing, Tensor))


def held(holder: Any, seen: set[int]) -> Iterator[Any]:
    """What stands in a module's attributes, or in a function's closure, defaults or bound arguments, and all in that.

    Args:
        holder: the module or function, or anything that one holds.
        seen: ids of what has been looked through, since modules and functions may hold each other in a circle.
    """
    if id(holder) in seen:
        return
    seen.add(id(holder))
    yield holder
    for part in _parts(holder):
        yield from held(part, seen)


def held_parts(holder: Any, seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """The modules, with their names, and the functions and objects, without, that a call may run through.

    They are those of a module and within it, and those in a function's closure, defaults, globals or bound arguments.
    """
    seen = set() if seen is None else seen
    if id(holder) in seen:
        return
    seen.add(id(holder))
    if isinstance(holder, nn.Module):
        yield from holder.named_modules()
        return
    yield "", holder
    for part in [*_parts(holder), *_globals(holder), *_attributes(holder)]:
        if isinstance(part, nn.Module | _CALLED) or (isinstance(holder, _CALLED) and hasattr(part, "__dict__")):
            yield from held_parts(part, seen)


def compiled(holder: Any) -> bool:
    """Whether code that torch.compile has traced may run in it, which is left as it is."""
    marks = ("_orig_mod", "_torchdynamo_orig_callable")
    return any(hasattr(part, mark) for _, part in held_parts(holder) for mark in marks)


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
    """Modules and functions of the same file that a function reads by their global names."""
    if not isinstance(holder, FunctionType):
        return []
    found = [holder.__globals__.get(name) for name in _names(holder.__code__)]
    return [
        value
        for value in found
        if isinstance(value, nn.Module) or (isinstance(value, FunctionType) and value.__globals__ is holder.__globals__)
    ]


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _attributes(holder: Any) -> list[Any]:
    """What an object that is neither function nor tensor holds, such as a trainer whose method is the encoder."""
    if isinstance(holder, _CALLED | Tensor | type | ModuleType):
        return []
    return list(getattr(holder, "__dict__", {}).values())
