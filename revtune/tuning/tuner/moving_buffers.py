"""Buffers that forward passes change: running statistics, spectral norms' vectors, averages of a module's own.

A pass that is made again, or only to learn responses, must find them as the first one left them, and leave them so.
Whether a pass has changed one is told by its version and by which tensor it is. Torch's normalisations change theirs
without a new version, so they are always taken to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from revtune.tuning.responses.linearized import version_of


class _Place(NamedTuple):
    module: nn.Module
    name: str


class MovingBuffers:
    """The buffers of a network that its training passes change, as far as they have been seen to."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._moving = model, set[_Place]()
        self._seen = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """A training pass runs in here, and what it changes is noted."""
        before = {place: (buffer, version_of(buffer)) for place, buffer in self._all()}
        yield
        self._seen = True
        for place, buffer in self._all():
            if place in before and (before[place][0] is not buffer or before[place][1] != version_of(buffer)):
                self._moving.add(place)

    @contextlib.contextmanager
    def kept(self, errors: type[BaseException] = Exception) -> Iterator[None]:
        """Buffers are put back if the block fails by such an error."""
        saved = [(place, buffer, buffer.clone()) for place, buffer in self._those_that_move()]
        try:
            yield
        except errors:
            with torch.no_grad():
                for place, buffer, value in saved:
                    setattr(place.module, place.name, buffer.copy_(value))
            raise

    @contextlib.contextmanager
    def standing(self) -> Iterator[Callable[[], None]]:
        """Passes in here change copies, and buffers are as before when it ends; calling what it gives, they begin anew.

        Each beginning has copies of its own, as a graph may hold those of the pass before.
        """
        own = list(self._those_that_move())

        def begin() -> None:
            for place, buffer in own:
                setattr(place.module, place.name, buffer.clone())

        try:
            begin()
            yield begin
        finally:
            for place, buffer in own:
                setattr(place.module, place.name, buffer)

    def _those_that_move(self) -> Iterator[tuple[_Place, Tensor]]:
        """Buffers that passes change; before the first pass has been watched, all."""
        for place, buffer in self._all():
            norm = isinstance(place.module, nn.modules.batchnorm._NormBase)
            if norm or not self._seen or place in self._moving:
                yield place, buffer

    def _all(self) -> Iterator[tuple[_Place, Tensor]]:
        """Each buffer by its places, but for those that are not made yet."""
        for module in self._model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and not is_lazy(buffer):
                    yield _Place(module, name), buffer
