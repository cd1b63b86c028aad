"""The readout of a chunk: its steps in blocks, padding left out, gradients put back where they belong.

Shapes: T time, K steps of a chunk, B batch, H hidden, N positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from revtune.reversible.arguments import running
from revtune.reversible.kernel.chunks import pieces
from revtune.reversible.own_pages import in_own_pages
from revtune.reversible.streams.readout_pass import ReadoutPass
from revtune.sequences import Positions, handing


class ChunkReadout:
    """Reads out chunks of a batch of sequences.

    Args:
        readout: reads positions.
        targets: (T, B, ...).
        lengths: steps of each row, (B,), or None.
        chunk: K, but for the last chunk.
        block_bytes: what the graph of a block may keep at most; None for no limit. A block has whole steps.
    """

    def __init__(
        self, readout: ReadoutPass, targets: Tensor, lengths: Tensor | None, chunk: int, block_bytes: int | None
    ) -> None:
        self._pass, self._targets, self._lengths = readout, targets, lengths
        self._chunk, self._block_bytes = chunk, block_bytes
        self._block: int | None = None
        self._room: Tensor | None = None

    def loss(self, y: Tensor, first: int) -> Tensor:
        """The summed loss of a chunk's outputs (K, B, H), whose first step is `first`, 0-d float64, or by row, (B,)."""
        total = self._nothing(y)
        for block in self._blocks(y, first):
            positions, targets = self._positions(y[block], first + block.start, first + block.stop)
            if len(positions):
                with self._handing(first + block.start, first + block.stop):
                    loss = self._pass.loss(positions, targets)
                total += self._by_row(loss, first + block.start, first + block.stop)
        return total

    def gradient(self, y: Tensor, first: int, *beside: Tensor) -> tuple[Tensor, Tensor | None]:
        """The summed loss of a chunk, or that of each row, and the gradient of the sum, (K, B, H), or None for zero.

        The next chunk's gradient may be written over this one. Tensors beside the outputs, (K, B, ...) too, are cut
        as they are and handed to the readout's pass.
        """
        blocks = self._blocks(y, first)
        if len(blocks) == 1:
            return self._block_gradient(y, first, beside)
        total, dy = self._nothing(y), self._gradient_room(y)
        for block in blocks:
            loss, grad = self._block_gradient(y[block], first + block.start, [other[block] for other in beside])
            total += loss
            dy[block] = 0.0 if grad is None else grad
            del grad  # before the next block makes its own
        return total, dy

    def _gradient_room(self, y: Tensor) -> Tensor:
        """Memory for the gradient of outputs (K, B, H), used again by each chunk."""
        if self._room is None or len(self._room) < len(y):
            self._room = in_own_pages(y, tuple(y.shape))
        return self._room[: len(y)]

    def _block_gradient(self, y: Tensor, first: int, beside: Iterable[Tensor]) -> tuple[Tensor, Tensor | None]:
        positions, targets = self._positions(y, first, first + len(y))
        if not len(positions):
            return self._nothing(y), None
        with self._handing(first, first + len(y)):
            others = [self._positions(other, first, first + len(y))[0] for other in beside]
            loss, grad = self._pass.gradient(positions, targets, *others)
        return self._by_row(loss, first, first + len(y)), self._placed(grad, y, first)

    def _nothing(self, y: Tensor) -> Tensor:
        """What losses are added up from: 0-d, or (B,) for each row."""
        return torch.zeros(y.shape[1:2] if self._pass.each else (), dtype=torch.float64, device=y.device)

    def _by_row(self, loss: Tensor, first: int, last: int) -> Tensor:
        """The losses of some steps' positions, (N,), added up for each row, (B,); their sum is left as it is."""
        if not self._pass.each:
            return loss
        live = self._live(first, last)
        if live is None:
            return loss.view(last - first, -1).sum(0)
        placed = loss.new_zeros(live.shape)
        placed[live] = loss
        return placed.sum(0)

    @contextmanager
    def _handing(self, first: int, last: int) -> Iterator[None]:
        """Within this block readouts are handed these steps' positions, and draw what belongs to them."""
        positions = Positions(self._targets.shape[1], last - first, self._live(first, last))
        with handing(positions), self._pass.replaying(first):
            yield

    def _blocks(self, y: Tensor, first: int) -> list[slice]:
        """The steps of a chunk that are read out at once: all of them, where that is little."""
        targets = self._targets[first : first + len(y)]
        self._pass.try_once(y, targets, self._live(first, first + len(y)))
        if self._pass.cuts_itself:
            return [slice(0, len(y))]
        if self._block is None:
            self._block = self._pass.block_steps(y, targets, self._chunk, self._block_bytes)
        return [slice(*piece) for piece in pieces(0, len(y), self._block)]

    def _positions(self, y: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Outputs (N, H) and targets (N, ...) of some steps' positions, padding left out."""
        live, targets = self._live(first, last), self._targets[first:last]
        return (y.flatten(0, 1), targets.flatten(0, 1)) if live is None else (y[live], targets[live])

    def _placed(self, grad: Tensor, y: Tensor, first: int) -> Tensor:
        """A gradient (N, H) by position as one (K, B, H), zero at padding."""
        live = self._live(first, first + len(y))
        if live is None:
            return grad.view(y.shape)
        placed = torch.zeros_like(y)
        placed[live] = grad
        return placed

    def _live(self, first: int, last: int) -> Tensor | None:
        """Which positions are no padding, (K, B); None for all."""
        return None if self._lengths is None else running(self._lengths, first, last)
