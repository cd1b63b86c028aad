"""Ways to differentiate other than one plain backward pass, and how they are refused.

They are forward mode, the transforms of torch.func, batches of gradients, and double backward. A net that rewinds
checks its numbers on the way, and its gradient has no graph; so none of them can go through it. The kernel's operator
alone runs under torch.func.vmap, example by example, where it returns as much for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad


def refuse_transforms(tensors: Iterable[Tensor], *, batches: bool = False) -> None:
    """Refuse tensors that carry a tangent, or that a transform of torch.func has wrapped.

    Args:
        tensors: the inputs of what is about to run.
        batches: whether that may run under torch.func.vmap.

    Raises:
        RuntimeError: names the transform, and what to do instead.
    """
    if not active():
        return
    for tensor in tensors:
        kinds = {_functorch.is_batchedtensor(layer) for layer in _layers(tensor)}
        if forward_ad._current_level >= 0 and (False in kinds or forward_ad.unpack_dual(tensor).tangent is not None):
            raise RuntimeError("revtune does not support forward-mode differentiation; use backward")
        if False in kinds:
            raise RuntimeError(
                "revtune does not support torch.func.grad, vjp and jacrev: a rewound gradient has no graph; "
                "use backward or torch.autograd.grad"
            )
        if True in kinds and not batches:
            raise RuntimeError(
                "revtune does not support torch.func.vmap here: exact states are checked by their numbers; make the "
                "examples rows of one batch"
            )


def refuse_batches(grads: Iterable[Tensor | None]) -> None:
    """Refuse a batch of gradients in the place of one.

    Raises:
        RuntimeError: a backward pass under `is_grads_batched`, `vectorize` or torch.func.vmap.
    """
    batched = (_functorch.is_batchedtensor, _functorch.is_legacy_batchedtensor)
    if any(grad is not None and kind(grad) for grad in grads for kind in batched):
        raise RuntimeError(
            "revtune does not support batches of gradients here (is_grads_batched, vectorize); "
            "take one backward pass each, with retain_graph=True"
        )


def refuse_double_backward(what: str) -> None:
    """Refuse, in a backward pass, to be differentiated once more.

    Raises:
        RuntimeError: the pass was asked for a graph of its own (create_graph=True); names `what` runs it.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{what} does not support double backward: its gradient has no graph; use create_graph=False"
        )


def graph_retained() -> bool:
    """Whether the backward pass under way has retain_graph=True, so that there may be another one after it."""
    # Private, since autograd tells its functions in no other way
    retained: bool = torch._C._autograd._get_current_graph_task_keep_graph()
    return retained


def wants_gradient(tensor: Tensor) -> bool:
    """Whether a tensor, or under torch.func.vmap one that it wraps, requires a gradient."""
    if tensor.requires_grad or not active():
        return tensor.requires_grad
    return any(_functorch.get_unwrapped(layer).requires_grad for layer in _layers(tensor))


def is_batch(tensor: Tensor) -> bool:
    """Whether torch.func.vmap has wrapped a tensor."""
    return any(_functorch.is_batchedtensor(layer) for layer in _layers(tensor))


def active() -> bool:
    """Whether any transform, or forward mode, is under way."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or _functorch.peek_interpreter_stack() is not None


def _layers(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor as each transform sees it, from the inside out."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        yield tensor
        tensor = _functorch.get_unwrapped(tensor)
