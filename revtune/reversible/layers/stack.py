"""Several layers that move through a chunk together, with the masks between them.

A stack is a chain of links. Forward a chunk passes through them bottom up; rewinding goes bottom up too, since a
layer's rewound outputs are the next layer's inputs; gradients go top down. Only the present chunk's inputs of each
link are kept.

Shapes: K steps of a chunk, B batch, F features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from revtune.processes import having, share_of_batch
from revtune.reversible.kernel.chunks import budget_on, evened_out, fewest_steps, most_steps
from revtune.reversible.kernel.tape import Tape
from revtune.reversible.layers.masks import DrawMask
from revtune.reversible.meter import Usage

DEFAULT_BUDGET = 3 * 2**20
"""Bytes that one chunk's inputs, gates and projections may take, over all layers that move together.

It is of the order of a CPU's cache, where a chunk then stays from its forward pass to its gradient. On a GPU it is
`budget_on`'s.
"""


RESPONDING = 2
"""How many times as much they may take where a layer responds: else chunks would be too short for their matmuls."""


class LockedMask:
    """Locked (variational) dropout: a mask (B, F) drawn once a sequence and used at every step."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def apply(self, x: Tensor, first: int) -> Tensor:
        """The masked chunk (K, B, F), or its masked gradient."""
        return x * self.mask


class StepDropout:
    """Dropout drawn anew at every step; a chunk's mask is not stored but drawn again from the chunk's seed.

    Attributes:
        share: which rows of the batch it is for, as where it was made: on the way back that may lie behind.
    """

    def __init__(self, draw: DrawMask, seed: int) -> None:
        self.draw, self.seed, self.share = draw, seed, share_of_batch()

    def apply(self, x: Tensor, first: int) -> Tensor:
        """The masked chunk (K, B, F) that starts at step `first`, or its gradient under the same mask."""
        generator = torch.Generator(x.device).manual_seed(self.seed + first)
        with having(self.share):
            return x * self.draw(tuple(x.shape), like=x, generator=generator)


Link = Tape | LockedMask | StepDropout
Move = Callable[[Tensor, int], Tensor]
"""A way through a chunk, which starts at a step: `forward`, `rewind` and the like of a tape or a stack."""


class Tapes:
    """Tapes that move through one batch of sequences together, with the masks beside them.

    Args:
        links: tapes and masks.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self.links = list(links)

    @property
    def tapes(self) -> list[Tape]:
        """The layers, as they stand among the links."""
        return [link for link in self.links if isinstance(link, Tape)]

    def usages(self) -> list[Usage]:
        """What each layer stores."""
        return [tape.usage() for tape in self.tapes]

    def reuse_outputs(self) -> None:
        """Let each tape put a chunk's outputs where those of the chunk before were, but for `infer`."""
        for tape in self.tapes:
            tape.reuses_outputs = True

    def chunk_steps(self, steps: int, budget: int | None = None) -> int:
        """Steps of a chunk of a sequence: what fits the budget but at least `fewest_steps`, evened out.

        Shapes alone decide, so that both directions cut alike: matrix products repeat to the last bit only in equal
        shapes. Where masks are drawn chunk by chunk, those of the whole batch of several processes decide.

        Args:
            steps: of the sequence.
            budget: bytes of a chunk; `self.budget` for None.
        """
        own = self.tapes[0].rows
        rows = next((link.share.whole for link in self.links if isinstance(link, StepDropout) and link.share), own)
        fewest, step_bytes = fewest_steps(rows), self.step_bytes // own * rows
        return evened_out(steps, most_steps(budget or self.budget, step_bytes, fewest), fewest=fewest)

    @property
    def budget(self) -> int:
        """Bytes that a chunk may take by default."""
        responding = any(tape.weights.responses for tape in self.tapes)
        return budget_on(self.tapes[0].slices.device, RESPONDING * DEFAULT_BUDGET if responding else DEFAULT_BUDGET)

    @property
    def step_bytes(self) -> int:
        """Bytes of one step's inputs, gates and projections, over all layers."""
        return sum(tape.rows * tape.floats_per_step * tape.dtype.itemsize for tape in self.tapes)


class Stack(Tapes):
    """A chain of tapes and masks over one batch of sequences.

    Args:
        links: bottom first.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        super().__init__(links)
        self._inputs: list[Tensor] = []
        self._noted: Tape | None = None
        self._raw: Tensor | None = None

    @property
    def ways(self) -> Sequence[Stack]:
        """Its directions, of which it is the only one."""
        return [self]

    def in_order(self, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The chunks of a sequence in the order in which it reads them."""
        return list(spans)

    def turned(self, x: Tensor) -> Tensor:
        """What is in the order in which it reads steps, (T, ...), in the sequence's, or the other way round."""
        return x

    def note_raw(self) -> None:
        """Note each chunk's raw outputs, which `taken_raw` tells."""
        self._noted = self.tapes[-1]

    def taken_raw(self) -> Tensor:
        """The outputs (K, B, H) of the top layer for the present chunk, below any mask; asked for once."""
        raw, self._raw = self._raw, None
        assert raw is not None
        return raw

    def copy(self) -> Self:
        """A stack that rewinds on its own and leaves this one as it is."""
        other = copy.copy(self)
        other.links = [link.copy() if isinstance(link, Tape) else link for link in self.links]
        other._inputs, other._noted = list(self._inputs), None
        return other

    def forward(self, x: Tensor, first: int) -> Tensor:
        """Run a chunk (K, B, I), whose first step is `first`, so that it can be rewound. Returns outputs (K, B, H)."""
        return self._up(x, first, lambda tape: tape.forward)

    def preview(self, x: Tensor, first: int) -> Tensor:
        """Run a chunk with `forward`'s arithmetic, keeping nothing."""
        return self._up(x, first, lambda tape: tape.preview)

    def infer(self, x: Tensor, first: int) -> Tensor:
        """Run a chunk without a buffer."""
        return self._up(x, first, lambda tape: tape.infer)

    def record(self, x: Tensor, first: int) -> Tensor:
        """Run the last chunk, keep its gates, and stand again where it began."""
        return self._up(x, first, lambda tape: tape.record, keep=True)

    def rewind(self, x: Tensor, first: int) -> Tensor:
        """Undo the chunk that `forward` ran last, keeping what `gradient` needs."""
        return self._up(x, first, lambda tape: tape.rewind, keep=True)

    def gradient(
        self, dy: Tensor | None, first: int, *, draw: Tensor | None = None, keep: bool = False, wanted: bool = True
    ) -> Tensor | None:
        """Carry the gradient of the chunk's outputs (or None for zero) down to its inputs.

        Args:
            dy: (K, B, H).
            first: the chunk's first step.
            draw: a gradient of the raw outputs, (K, B, H), to be added; it may be written over.
            keep: whether the same chunk will be asked again.
            wanted: whether the gradient of the inputs is wanted; if not, None is returned.
        """
        grad = dy
        lowest = self.tapes[0]
        for link, x in zip(reversed(self.links), reversed(self._inputs), strict=True):
            if isinstance(link, Tape):
                if draw is not None:
                    grad, draw = draw if grad is None else draw.add_(grad), None
                grad = link.gradient(x, grad, keep=keep, wanted=wanted or link is not lowest)
            elif grad is not None:
                grad = link.apply(grad, first)
        if not keep:
            self._inputs = []
        assert grad is not None or not wanted
        return grad

    def up(self, x: Tensor, run: Callable[[Link, Tensor], Tensor], *, keep: bool = False) -> Tensor:
        """Pass a chunk through all links, bottom up.

        Args:
            x: (K, B, I).
            run: runs a link, given its inputs.
            keep: whether `gradient` will be asked for this chunk.
        """
        inputs = []
        for link in self.links:
            inputs.append(x)
            x = run(link, x)
            if link is self._noted:
                self._raw = x
        if keep:
            self._inputs = inputs
        return x

    def _up(self, x: Tensor, first: int, move: Callable[[Tape], Move], *, keep: bool = False) -> Tensor:
        """Pass a chunk through all links, each tape by the move that `move` picks of it."""

        def run(link: Link, x: Tensor) -> Tensor:
            return move(link)(x, first) if isinstance(link, Tape) else link.apply(x, first)

        return self.up(x, run, keep=keep)
