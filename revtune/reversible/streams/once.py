"""Range checks of ids and targets, once a call however many chunks read them.

A check asks the device, and a host that asks must wait until the device is done. A stream reads its inputs and targets
in chunks, and most chunks twice. So the first check of a chunk looks at the whole tensor, and others need not look.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from contextvars import ContextVar

import torch
from torch import Tensor

from revtune.reversible.transforms import active
from revtune.sequences import setting

Check = Callable[[Tensor], None]


class Whole:
    """A tensor that a call reads in parts.

    Args:
        tensor: whose numbers lie in one piece of memory, in any order of its dimensions.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._memory, self._version = tensor.untyped_storage().data_ptr(), tensor._version
        self._ends = _ends(tensor)
        self._passed: dict[Hashable, bool] = {}

    def has(self, part: Tensor) -> bool:
        """Whether these numbers are among the whole's, unchanged, as far as autograd counts changes."""
        if part.dtype != self.tensor.dtype or part.untyped_storage().data_ptr() != self._memory or not part.numel():
            return False
        (first, last), (begin, end) = _ends(part), self._ends
        return begin <= first and last <= end and part._version == self._version == self.tensor._version

    def knows(self, what: Hashable) -> bool:
        """Whether it has been looked at for this check."""
        return what in self._passed

    def passes(self, check: Check, what: Hashable) -> bool:
        """Whether the whole passes a check, of which `what` tells all that decides."""
        if what not in self._passed:
            try:
                check(self.tensor)
                self._passed[what] = True
            except ValueError:  # perhaps for what this part has not
                self._passed[what] = False
        return self._passed[what]


_read: ContextVar[tuple[Whole, ...]] = ContextVar("revtune_read_once", default=())


def reading(*tensors: Tensor) -> AbstractContextManager[None]:
    """Within this block these tensors are read in parts."""
    return setting(_read, tuple(Whole(tensor) for tensor in tensors if _in_one_piece(tensor)))


def check_once(tensor: Tensor, check: Check, what: Hashable) -> None:
    """Check a tensor of whole numbers, unless it is part of one that has passed.

    Args:
        tensor: the numbers.
        check: raises a ValueError for the first number that is wrong, in a tensor of any shape.
        what: tells all that decides about a number, so that other checks are not taken for this one.
    """
    wholes = [whole for whole in _wholes(tensor) if whole.has(tensor)]
    wholes.sort(key=lambda whole: not whole.knows(what))  # inputs and targets may be two views of the same tokens
    if not any(whole.passes(check, what) for whole in wholes):
        check(tensor)


def _wholes(tensor: Tensor) -> tuple[Whole, ...]:
    """Those that a tensor may be part of.

    None for inference tensors, whose changes nobody counts, and within torch.func, whose tensors have no memory.
    """
    return () if tensor.is_inference() or active() else _read.get()


def _in_one_piece(tensor: Tensor) -> bool:
    """Whether a tensor of integers has every number of the memory between its first and its last."""
    usual = type(tensor) is Tensor and tensor.layout == torch.strided and not tensor.is_inference()
    if not usual or tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta or not tensor.numel():
        return False
    first, last = _ends(tensor)
    return last - first + 1 == tensor.numel()


def _ends(tensor: Tensor) -> tuple[int, int]:
    """Where in its storage a tensor's first and last numbers are, counted in numbers."""
    first = tensor.storage_offset()
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(first), int(first + reach)
