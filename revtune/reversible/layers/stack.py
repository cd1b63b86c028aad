"""Several layers that move through a chunk together, with the masks between them.

A stack is a chain of links. Forward a chunk passes through them bottom up; rewinding goes bottom up too, since a
layer's rewound outputs are the next layer's inputs; gradients go top down. Only the present chunk's inputs of each
link are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from revtune.reversible.kernel.chunks import evened_out, most_steps
from revtune.reversible.kernel.tape import Tape
from revtune.reversible.layers.masks import drop_mask
from revtune.reversible.meter import Usage

DEFAULT_BUDGET = 3 * 2**20
"""Bytes that one chunk's inputs, gates and projections may take, over all layers that move together."""


class Locked:
    """A mask drawn once a sequence and used at every step: locked (variational) dropout. `mask` is (B, F)."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def apply(self, x: Tensor, first: int) -> Tensor:
        """The masked chunk (K, B, F); its gradient is masked in the same way."""
        return x * self.mask


class Noise:
    """Dropout drawn anew at every step, replayed from one seed a chunk instead of stored masks."""

    def __init__(self, p: float, seed: int) -> None:
        self.p, self.seed = p, seed

    def apply(self, x: Tensor, first: int) -> Tensor:
        """The masked chunk (K, B, F) that starts at step `first`; the same mask whenever it is asked for."""
        generator = torch.Generator(x.device).manual_seed(self.seed + first)
        return x * drop_mask(tuple(x.shape), self.p, x, generator)


Link = Tape | Locked | Noise


class Stack:
    """A chain of tapes and masks over one batch of sequences.

    Args:
        links: bottom first.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self.links = list(links)
        self._inputs: list[Tensor] = []

    @property
    def tapes(self) -> list[Tape]:
        """The layers, bottom first."""
        return [link for link in self.links if isinstance(link, Tape)]

    def usages(self) -> list[Usage]:
        """What each layer stores."""
        return [tape.usage() for tape in self.tapes]

    def copy(self) -> Stack:
        """A stack that rewinds on its own, leaving this one as it is."""
        other = Stack([link.copy() if isinstance(link, Tape) else link for link in self.links])
        other._inputs = list(self._inputs)
        return other

    def forward(self, x: Tensor, first: int) -> Tensor:
        """Run a chunk so that it can be rewound; shapes as in Tape."""
        return self._up(x, first, "forward")

    def preview(self, x: Tensor, first: int) -> Tensor:
        """Run a chunk with `forward`'s arithmetic, keeping nothing."""
        return self._up(x, first, "preview")

    def infer(self, x: Tensor, first: int) -> Tensor:
        """Run a chunk without a buffer."""
        return self._up(x, first, "infer")

    def record(self, x: Tensor, first: int) -> Tensor:
        """Run the last chunk, keep its gates, and stand again where it began."""
        return self._up(x, first, "record", keep=True)

    def rewind(self, x: Tensor, first: int) -> Tensor:
        """Undo the chunk that `forward` ran last, keeping what `gradient` needs."""
        return self._up(x, first, "rewind", keep=True)

    def gradient(self, dy: Tensor | None, first: int, *, keep: bool = False) -> Tensor:
        """Carry the gradient of the chunk's outputs (or None for zero) down to its inputs."""
        grad = dy
        for link, x in zip(reversed(self.links), reversed(self._inputs), strict=True):
            if isinstance(link, Tape):
                grad = link.gradient(x, grad, keep=keep)
            elif grad is not None:
                grad = link.apply(grad, first)
        if not keep:
            self._inputs = []
        assert grad is not None
        return grad

    def _up(self, x: Tensor, first: int, move: str, *, keep: bool = False) -> Tensor:
        inputs = []
        for link in self.links:
            inputs.append(x)
            x = getattr(link, move)(x, first) if isinstance(link, Tape) else link.apply(x, first)
        if keep:
            self._inputs = inputs
        return x


def chunk_steps(steps: int, rows: int, stack: Stack, budget: int) -> int:
    """How many steps a chunk has: what fits the budget but at least 4, by shapes alone, evened out over the sequence.

    Args:
        steps: length T of the sequence.
        rows: batch size B.
        stack: the layers that move together.
        budget: bytes that the gates, projections and inputs of one chunk may take.
    """
    size = sum(tape.floats_per_step * tape.dtype.itemsize for tape in stack.tapes)
    return evened_out(steps, most_steps(budget, rows * size))
