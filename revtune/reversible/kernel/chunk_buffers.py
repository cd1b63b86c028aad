"""The tensors of a chunk that a kernel's operators work on, and how its state lies: both parts of h, and of c, in one.

Shapes: K steps of a chunk, B batch, N units of a part, H = 2N, G gates, S states of the cell (h, or h and c).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from revtune.reversible.cells.cell import Cell
from revtune.reversible.own_pages import in_own_pages

PARTS = 2
"""Parts of a state. They share its heads in turn. c has heads of its own, so that it can be rewound alone."""

GRU_BLOCKS, LSTM_BLOCKS = 3, 5
"""Blocks of gates of one half."""


class ChunkBuffers(NamedTuple):
    """The tensors that the operators read and write for a chunk of K steps.

    Attributes:
        gates: (K, B, G): projected inputs, then gates, then the gradient of the projection.
        y: h after each step, (K, B, H).
        y_start: h before the first step, (B, H).
        c: c after each step, (K, B, H), of a RevLSTM that is recorded.
        c_start: c before the first step, (B, H), likewise.
        rh: r * h as products read it, (K, B, H), of a RevGRU that is recorded.
        y_before: h before each step, (K, B, H), where that is one tensor.
        resets: whether a row begins anew before a step, (K, B), uint8, where any does.
        ih_answer: V x of a response of the input projection, (K, B, G), before s scales it, if it is noted.
        hh_answer: likewise V h, and V (r * h) for g of a RevGRU.
    """

    gates: Tensor
    y: Tensor
    y_start: Tensor
    c: Tensor | None = None
    c_start: Tensor | None = None
    rh: Tensor | None = None
    y_before: Tensor | None = None
    resets: Tensor | None = None
    ih_answer: Tensor | None = None
    hh_answer: Tensor | None = None

    def copied(self) -> ChunkBuffers:
        """The chunk with copies of what its gradient is written over."""
        ih, hh = (None if answer is None else answer.clone() for answer in (self.ih_answer, self.hh_answer))
        return self._replace(gates=self.gates.clone(), ih_answer=ih, hh_answer=hh)

    def states(self) -> tuple[Tensor | None, ...]:
        """States after each step and before the first, in the order of the operators' arguments."""
        return self.y, self.y_start, self.c, self.c_start


def stacked(parts: Mapping[str, Tensor], cell: Cell) -> Tensor:
    """Tensors (B, N) by part as one, (S, 2, B, N)."""
    like = parts[cell.parts[0]]
    whole = in_own_pages(like, (len(cell.states), PARTS, *like.shape))
    for part, view in unstacked(whole, cell).items():
        view.copy_(parts[part])
    return whole


def unstacked(tensor: Tensor, cell: Cell) -> dict[str, Tensor]:
    """Views (B, N) by part of (S, 2, B, N)."""
    return {part: tensor[i, j] for i, group in enumerate(cell.states) for j, part in enumerate(group)}
