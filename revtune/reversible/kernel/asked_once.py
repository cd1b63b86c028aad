"""What must hold on a way back, asked of a device once for all chunks.

A host that asks a device for a number waits until all is done that it was given. On a CPU asking costs nothing, and
what does not hold raises immediately. On a device what each chunk finds stays there until the way back ends. Then one
question tells the first that does not hold, before a gradient is handed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible.kernel.checksum import signed
from revtune.sequences import setting

Number = int | Tensor
"""A whole number of 64 bits, or a tensor of one that the host has not asked for."""

Truth = bool | Tensor
"""Whether something holds, or a tensor of that."""

_noted: ContextVar[list[tuple[Tensor, str]] | None] = ContextVar("revtune_asked_once", default=None)


def require(holds: Truth, explain: Callable[[], str]) -> None:
    """Refuse a way back on which something does not hold: now, or for a tensor within `asking_once`, at its end.

    Args:
        holds: whether it does.
        explain: says what is wrong.

    Raises:
        ReversalError: it does not.
    """
    noted = _noted.get()
    if isinstance(holds, Tensor) and noted is not None:
        noted.append((holds, explain()))  # explained now, since what explains may hold a chunk's tensors
    elif not holds:
        raise ReversalError(explain())


@contextmanager
def asking_once() -> Iterator[None]:
    """Within this block tensors that `require` is given are asked for once, at its end.

    Raises:
        ReversalError: one does not hold; also in the place of another error, which may have come of that.
    """
    noted: list[tuple[Tensor, str]] = []
    try:
        with setting(_noted, noted):
            yield
    except Exception as error:
        if wrong := _first_wrong(noted):
            raise ReversalError(wrong) from error
        raise
    if wrong := _first_wrong(noted):
        raise ReversalError(wrong)


def same(found: Number, known: Number) -> Truth:
    """Whether two numbers below 2^64 have the same bits."""
    return found == (signed(known) if isinstance(found, Tensor) and isinstance(known, int) else known)


def equal(found: Tensor, known: Tensor, *, waits: bool) -> Truth:
    """Whether two tensors are; where the host `waits` for its device, that is not asked for yet."""
    return (found == known).all() if waits else torch.equal(found, known)


def numbers(some: Iterable[Number]) -> list[int]:
    """Numbers as the host knows them, between -2^63 and 2^64; those on a device are asked for in one question."""
    some = list(some)
    asked = iter(_told([number for number in some if isinstance(number, Tensor)]))
    return [int(next(asked)) if isinstance(number, Tensor) else number for number in some]


def _first_wrong(noted: list[tuple[Tensor, str]]) -> str:
    """What is said of the first that does not hold; "" if all do."""
    told = _told([holds for holds, _ in noted])
    return next((explained for holds, (_, explained) in zip(told, noted, strict=True) if not holds), "")


def _told(tensors: list[Tensor]) -> list[int]:
    """The numbers of tensors of one number each, in one question if they are on one device."""
    if len({tensor.device for tensor in tensors}) != 1:
        return list(map(int, tensors))
    found: list[int] = torch.stack(tensors).tolist()
    return found
