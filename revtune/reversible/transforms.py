"""Ways to differentiate that are not backward: forward mode, the transforms of torch.func, batches of gradients.

What rewinds checks its numbers on the way, and has a gradient but no graph of it. So it cannot go through them; the
kernel's operator alone runs under torch.func.vmap, example by example.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad


def refuse_transforms(tensors: Iterable[Tensor], *, batches: bool = False) -> None:
    """Refuse tensors that carry a tangent, or that a transform of torch.func stands behind.

    Args:
        tensors: what is about to run.
        batches: whether it may run under torch.func.vmap.

    Raises:
        RuntimeError: names the transform, and what to do instead.
    """
    if not _active():
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
    """Refuse gradients of which there are several at once.

    Raises:
        RuntimeError: a backward pass under `is_grads_batched`, `vectorize` or torch.func.vmap.
    """
    batched = (_functorch.is_batchedtensor, _functorch.is_legacy_batchedtensor)
    if any(grad is not None and kind(grad) for grad in grads for kind in batched):
        raise RuntimeError(
            "revtune does not support batches of gradients here (is_grads_batched, vectorize); "
            "take one backward pass each, with retain_graph=True"
        )


def wants_gradient(tensor: Tensor) -> bool:
    """Whether a tensor requires a gradient, outside torch.func.vmap if not within."""
    if tensor.requires_grad or not _active():
        return tensor.requires_grad
    return any(_functorch.get_unwrapped(layer).requires_grad for layer in _layers(tensor))


def _active() -> bool:
    """Whether any transform, or forward mode, is under way."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or _functorch.peek_interpreter_stack() is not None


def _layers(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor as each transform sees it, from the inside out."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        yield tensor
        tensor = _functorch.get_unwrapped(tensor)
