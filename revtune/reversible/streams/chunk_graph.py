"""Graphs of one chunk: the leaves that a gradient reaches, and hooks, which are silenced or refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn


def refuse_hooks(name: str, function: Any) -> None:
    """Refuse hooks, or kept gradients, of computed tensors that a function or module holds where one can see it.

    Raises:
        ValueError: names the function and the tensor's shape.
    """
    for tensor in held(function, set()):
        if tensor.grad_fn is not None and (tensor._backward_hooks or tensor.retains_grad):
            what = "a hook" if tensor._backward_hooks else "retain_grad()"
            raise ValueError(
                f"rewind_loss: {what} on the computed tensor {tuple(tensor.shape)} that {name} uses would see the "
                f"gradient of each chunk by itself; put hooks on leaves, or compute the tensor inside {name}"
            )


def held(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    """The tensors in a module's attributes, or in a function's closure, defaults or bound arguments."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    for part in _parts(thing):
        yield from held(part, seen)


def _parts(thing: Any) -> list[Any]:
    if isinstance(thing, nn.Module):
        return [*vars(thing).values(), *thing.children()]
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, FunctionType):
        defaults = (*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values())
        return [*defaults, *(cell.cell_contents for cell in thing.__closure__ or () if _filled(cell))]
    return []


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


class Autocast:
    """The autocast setting of the caller, for the parts of a stream that are the caller's own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device.type
        self.enabled = torch.is_autocast_enabled(device.type)
        self.dtype = torch.get_autocast_dtype(device.type)

    def again(self) -> AbstractContextManager[object]:
        """Put the caller's setting back for a block."""
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.enabled)


def leaves(root: Tensor) -> list[Tensor]:
    """The leaf tensors that a gradient of `root` would reach."""
    if root.grad_fn is None:
        return [root] if root.requires_grad else []
    seen, waiting, found = {root.grad_fn}, [root.grad_fn], []
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return found


def _grad(root: Tensor, tensors: list[Tensor], cotangent: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of a chunk; graphs that the caller built outside stay usable for the next one."""
    if not tensors:
        return ()
    cotangent = cotangent if cotangent is None else cotangent.to(root.dtype)
    with _hooks_silenced(tensors):
        return torch.autograd.grad(root, tensors, cotangent, retain_graph=True, allow_unused=True)


@contextmanager
def _hooks_silenced(tensors: list[Tensor]) -> Iterator[None]:
    """Hooks of leaves are for whole gradients, which autograd gets at the hand-over, and not for those of chunks."""
    hooks = [tensor._backward_hooks for tensor in tensors if tensor._backward_hooks]
    kept = [dict(hook) for hook in hooks]
    try:
        for hook in hooks:
            hook.clear()
        yield
    finally:
        for hook, items in zip(hooks, kept, strict=True):
            hook.update(items)
