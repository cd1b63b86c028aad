"""Whether a tensor's memory is still there: `untyped_storage().resize_(0)` takes it away and leaves shape and pointer.

FSDP frees parameters so. Who reads such a tensor reads memory that is nobody's, and the process dies. The kernel looks
at each tensor that it is handed (csrc/tensors.h), but knows no names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from revtune.errors import ReversalError

Named = Iterable[tuple[str, Tensor]]
"""Tensors, each after what errors call it."""


def check_stored(what: str, tensor: Tensor) -> None:
    """Refuse a tensor whose storage no longer holds all its numbers.

    Raises:
        ReversalError: names `what`.
    """
    if torch.compiler.is_compiling() or is_functorch_wrapped_tensor(tensor):
        return  # there is no memory to look at
    if tensor.untyped_storage().nbytes() >= _end(tensor) * tensor.element_size():
        return
    wrapped: bool = is_traceable_wrapper_subclass(tensor)
    if wrapped:
        return  # its memory is that of the tensors it wraps
    raise ReversalError(
        f"{what} of shape {tuple(tensor.shape)} has lost its memory: its storage was freed or resized, "
        "as FSDP does when it reshards, while numbers of it were still to be read; no gradient was produced"
    )


def check_all_stored(tensors: Named) -> None:
    """Refuse tensors whose memory is gone.

    Raises:
        ReversalError: names the first of them.
    """
    for what, tensor in tensors:
        check_stored(what, tensor)


@contextmanager
def naming_lost(tensors: Callable[[], Named]) -> Iterator[None]:
    """Within this block an error names the tensor whose memory is gone, if there is one.

    Raises:
        ReversalError: one of the tensors has lost its memory, for which the block failed.
    """
    try:
        yield
    except RuntimeError:
        check_all_stored(tensors())
        raise


def _end(tensor: Tensor) -> int:
    """Where in its storage a tensor's last number ends, counted in numbers; 0 for one without numbers."""
    if tensor.is_contiguous():
        return int(tensor.storage_offset()) + tensor.numel() if tensor.numel() else 0
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return int(tensor.storage_offset()) + 1 + sum((size - 1) * stride for size, stride in sizes)
