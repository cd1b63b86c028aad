"""What encoders and readouts bring along from outside: tensors that were computed before the stream began.

Their graph is run backward once a chunk. Sums of gradients do not mind; a hook would see each chunk's part by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

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
