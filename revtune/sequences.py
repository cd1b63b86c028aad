"""What streams and self-tuning layers both know of a sequence that runs in chunks: draws, and whose its rows are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

Draw = Callable[[torch.Generator | None], Tensor]


class Sequence(Protocol):
    """A sequence that is run chunk by chunk, perhaps more than once."""

    def once(self, owner: nn.Module, shape: tuple[int, ...], device: torch.device, draw: Draw) -> Tensor:
        """What `draw` gave when this module first asked for this shape."""


@contextmanager
def setting(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Within this block a variable has this value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


present: ContextVar[Sequence | None] = ContextVar("revtune_sequence", default=None)


def drawn_once(owner: nn.Module, shape: tuple[int, ...], device: torch.device, draw: Draw) -> Tensor:
    """What a module draws for the present sequence; where none is streamed, each call is a sequence.

    Args:
        owner: the module, which has one draw of a shape.
        shape: of what is drawn.
        device: of the generator that `draw` is given.
        draw: draws by a generator, or by torch's own for None.
    """
    sequence = present.get()
    return draw(None) if sequence is None else sequence.once(owner, shape, device, draw)


class Generators(Protocol):
    """Generators of random numbers that stand in for torch's own within a block."""

    def states(self, device: torch.device) -> list[Tensor]:
        """Where those of the CPU and of a device stand."""

    def set_states(self, states: list[Tensor], device: torch.device) -> None:
        """Go on from there."""


in_place_of_torch: ContextVar[Generators | None] = ContextVar("revtune_generators", default=None)
"""What draws in the place of torch's own generators; None where they do themselves."""


@dataclass(frozen=True)
class Along:
    """A chunk one of whose dimensions is the rows of the batch.

    Attributes:
        axis: that dimension.
        of: the row of each of its entries, (R,), where they are not all rows in order.
        asked: names of the layers that have asked for it.
    """

    axis: int
    of: Tensor | None = None
    asked: set[str] = field(default_factory=set)

    def count(self, rows: int) -> int:
        """How many entries that dimension has, in a batch of so many rows."""
        return rows if self.of is None else len(self.of)


@dataclass(frozen=True)
class Positions:
    """A chunk's positions (N, ...), time first: those of all `rows` at a step, then the next step's.

    Attributes:
        rows: B.
        steps: K.
        live: which are no padding, (K, B); None for all.
    """

    rows: int
    steps: int
    live: Tensor | None = None

    @property
    def number(self) -> int:
        """N."""
        return self.rows * self.steps if self.live is None else int(self.live.sum())

    def index(self) -> Tensor | None:
        """The row of each position that is no padding, (N,); None where all rows alternate, step by step."""
        return None if self.live is None else self.live.nonzero()[:, 1]

    def part(self, which: Tensor) -> Along:
        """Some of the positions, of these numbers (P,), in the order of these."""
        index = self.index()
        return Along(0, which % self.rows if index is None else index[which])


class Nobody:
    """A chunk on trial, which is of no rows: nothing answers for them."""


Rows = Along | Positions | Nobody

streamed: ContextVar[Rows | None] = ContextVar("revtune_rows", default=None)
"""Whose the entries of the chunk are that a stream has handed to a function of the user's; None outside of streams."""


def handing(rows: Rows) -> AbstractContextManager[None]:
    """Within this block functions of the user's are handed a chunk of these rows."""
    return setting(streamed, rows)


def handing_part(which: Tensor) -> AbstractContextManager[None]:
    """Within this block they are handed some of the present positions alone, of these numbers (P,)."""
    handed = streamed.get()
    return handing(handed.part(which)) if isinstance(handed, Positions) else nullcontext()
