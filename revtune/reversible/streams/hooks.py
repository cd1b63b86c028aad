"""Hooks that would see the gradients of chunks where they are meant for whole ones: refused, or silenced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn


def hooked(module: nn.Module) -> bool:
    """Whether hooks are to see a module's calls, or their gradients."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def refuse_hooks(name: str, function: Any) -> None:
    """Refuse hooks, or kept gradients, of computed tensors, where a function or module is seen to hold them.

    Raises:
        ValueError: names the function and the tensor's shape.
    """
    for tensor in held_tensors(function, set()):
        if tensor.grad_fn is not None and (tensor._backward_hooks or tensor.retains_grad):
            what = "a hook" if tensor._backward_hooks else "retain_grad()"
            raise ValueError(
                f"rewind_loss: {what} on the computed tensor {tuple(tensor.shape)} that {name} uses would see the "
                f"gradient of each chunk by itself; put hooks on leaves, or compute the tensor inside {name}"
            )


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


@contextmanager
def hooks_silenced(tensors: list[Tensor]) -> Iterator[None]:
    """Within this block hooks of these leaves do not run; autograd runs them later, on the whole gradient."""
    hooks = [tensor._backward_hooks for tensor in tensors if tensor._backward_hooks]
    kept = [dict(hook) for hook in hooks]
    try:
        for hook in hooks:
            hook.clear()  # autograd holds these very dicts, so they are emptied and not replaced
        yield
    finally:
        for hook, items in zip(hooks, kept, strict=True):
            hook.update(items)
