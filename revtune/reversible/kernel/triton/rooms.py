"""Rooms for the tensors of launches that are replayed: memory that stays where it is, in the place of a call's own.

What launches are given is tensors, numbers, tuples of such, and a `Chunk`, whose attributes are such.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor

from revtune.reversible.kernel.triton.chunk import Chunk

SharedRooms = MutableMapping[Hashable, Tensor]
"""Rooms by what they hold, which several graphs may have in common: of those that run one after another.

The first dimension, such as the steps of a chunk, may be longer than a tensor's, which then fills a room's first part.
"""


LEAST_WORDS = 2**12
"""Words for which there is room at least."""


def described(given: Any) -> Hashable:
    """All that decides which launches these arguments lead to, and how: no numbers of tensors, and no addresses.

    Raises:
        TypeError: something that may change unseen is among them.
    """
    if isinstance(given, Tensor):
        return given.dtype, _room_shape(given)
    if isinstance(given, tuple):
        return type(given), *map(described, given)
    if isinstance(given, Chunk):
        return type(given), *((name, described(value)) for name, value in vars(given).items())
    if given is None or isinstance(given, int | float | str):
        return type(given), given
    raise TypeError(f"launches that are replayed take tensors, numbers, tuples and chunks, got {type(given).__name__}")


def tensors_in(given: Any) -> Iterator[Tensor]:
    """All tensors among arguments, in an order that `described` decides."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, tuple | Chunk):
        for part in given if isinstance(given, tuple) else vars(given).values():
            yield from tensors_in(part)


class Rooms:
    """The arguments of launches, all of whose tensors lie in rooms.

    Args:
        given: the arguments of a call.
        shared: rooms that there are already; those that are missing are added.

    Attributes:
        args: the same with rooms for tensors.
        whole: the rooms that these are the first part of.
    """

    def __init__(self, given: tuple[Any, ...], shared: SharedRooms) -> None:
        self.whole, self._rooms = zip(*_rooms_for(tensors_in(given), shared), strict=True)
        self.args: tuple[Any, ...] = _with(given, iter(self._rooms).__next__)

    @property
    def bytes(self) -> int:
        """How much memory is kept for them: whole rooms, which a call may fill in part."""
        return sum({id(room): room.nbytes for room in self.whole}.values())

    def fill(self, given: tuple[Any, ...]) -> None:
        """Copy a call's tensors into their rooms."""
        for room, tensor in self._pairs(given):
            room.copy_(tensor)

    def empty(self, given: tuple[Any, ...], changed: list[Tensor]) -> None:
        """Copy what launches have changed back into the call's tensors."""
        ids = set(map(id, changed))
        for room, tensor in self._pairs(given):
            if id(tensor) in ids:
                tensor.copy_(room)

    def only(self, given: tuple[Any, ...], changed: list[Tensor]) -> bool:
        """Whether launches have changed nothing else. Asks the device."""
        ids = set(map(id, changed))
        return all(_same_bits(room, tensor) for room, tensor in self._pairs(given) if id(tensor) not in ids)

    def _pairs(self, given: tuple[Any, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        """Each tensor after the part of its room that it fills."""
        for room, tensor in zip(self._rooms, tensors_in(given), strict=True):
            yield room if room.shape == tensor.shape else room[: len(tensor)], tensor


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same bits; NaN, which a gradient may hold, is not equal to itself."""
    return torch.equal(*(tensor.contiguous().view(torch.uint8) for tensor in (one, other)))


def _with(given: Any, room: Callable[[], Tensor]) -> Any:
    """The same arguments with the next room in the place of each tensor."""
    if isinstance(given, Tensor):
        return room()
    if isinstance(given, Chunk):
        chunk = copy.copy(given)
        vars(chunk).update({name: _with(value, room) for name, value in vars(given).items()})
        return chunk
    if isinstance(given, tuple):
        parts = [_with(part, room) for part in given]
        return type(given)(*parts) if hasattr(given, "_fields") else tuple(parts)
    return given


def _rooms_for(tensors: Iterator[Tensor], shared: SharedRooms) -> Iterator[tuple[Tensor, Tensor]]:
    """A room for each tensor, and the part that it fills: the first of its kind for the first, and so on."""
    numbers: dict[Hashable, int] = {}
    for tensor in tensors:
        shape = _room_shape(tensor)
        kind = (tensor.dtype, shape[1:])
        number = numbers[kind] = numbers.get(kind, -1) + 1
        with torch.inference_mode(False):  # else nobody outside of inference mode could write to it
            room = shared.get((*kind, number))
            if room is None or len(room) < shape[0]:
                room = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
            shared[(*kind, number)] = room
            yield room, room[: shape[0]]


def _room_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape of a tensor's room. That of words, of which every chunk has another number, is a power of two."""
    if tensor.dtype == torch.int16 and tensor.dim() == 1:
        return (max(LEAST_WORDS, 1 << (len(tensor) - 1).bit_length()),)
    return tuple(tensor.shape)
