"""What is drawn once for a sequence that runs in chunks: the one thing that streams and tuned dropouts both know."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor, nn

Draw = Callable[[torch.Generator | None], Tensor]


class Sequence(Protocol):
    """A sequence that is run chunk by chunk, perhaps more than once."""

    def once(self, owner: nn.Module, shape: tuple[int, ...], device: torch.device, draw: Draw) -> Tensor:
        """What `draw` gave when this module first asked for this shape."""


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
