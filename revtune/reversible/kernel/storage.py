"""Whether a tensor's memory is still there: `untyped_storage().resize_(0)` takes it away and leaves shape and pointer.

FSDP frees parameters so. Who reads such a tensor reads memory that is nobody's, and the process dies.
"""

from __future__ import annotations

from torch import Tensor

from revtune.errors import ReversalError


def check_stored(what: str, tensor: Tensor) -> None:
    """Refuse a tensor whose storage no longer holds all its numbers.

    Raises:
        ReversalError: names `what`.
    """
    if tensor.numel() and tensor.untyped_storage().nbytes() < _end(tensor) * tensor.element_size():
        raise ReversalError(
            f"{what} of shape {tuple(tensor.shape)} has lost its memory: its storage was freed or resized, "
            "as FSDP does when it reshards, while numbers of it were still to be read; no gradient was produced"
        )


def _end(tensor: Tensor) -> int:
    """Where in its storage a tensor's last number ends, counted in numbers."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return int(tensor.storage_offset()) + 1 + sum((size - 1) * stride for size, stride in sizes)
