"""The C++ kernel with one layer's weights: chunks forward, rewound, recalled from outputs, and their gradients.

The time loop is csrc/'s; here stand what its operators are handed and the weights' gradients, one matmul a chunk.

Shapes: K steps of a chunk, B batch, N units of a part, H = 2N, G gates, S states of the cell (h, or h and c).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from revtune.reversible import meter as metering
from revtune.reversible.cells import fixed
from revtune.reversible.cells.buffer import HEAD_START, check_share, default_share
from revtune.reversible.cells.cell import Cell, slope_of
from revtune.reversible.kernel.weights import Weights

PARTS = 2
"""Parts of a state. They share its heads in turn; c has heads of its own, to be rewound where outputs tell h."""


GRU_BLOCKS, LSTM_BLOCKS = 3, 5
"""Blocks of gates of one half."""


class Keep:
    """What a forward chunk keeps of the buffer, as csrc/chunk.h counts it."""

    NOTHING, HEADS, CELLS, EVERYTHING = range(4)


class Room(NamedTuple):
    """A chunk of K steps.

    Attributes:
        gates: (K, B, G): projected inputs, then gates, then the gradient of the projection.
        y: h after each step, (K, B, H).
        y_start: h before the first, (B, H).
        c: likewise c, of a RevLSTM that is recorded.
        c_start: likewise.
        rh: r * h as products read it, (K, B, H), of a RevGRU that is recorded.
        y_before: h before each step, (K, B, H), where that lies in one piece.
    """

    gates: Tensor
    y: Tensor
    y_start: Tensor
    c: Tensor | None = None
    c_start: Tensor | None = None
    rh: Tensor | None = None
    y_before: Tensor | None = None

    def states(self) -> tuple[Tensor | None, ...]:
        """States after and before, as operators take them."""
        return self.y, self.y_start, self.c, self.c_start


class Kernel:
    """The operators torch.ops.revtune.* with a layer's weights, masks and lengths.

    Args:
        cell: a RevGRU or RevLSTM.
        weights: the layer's weights, float32 on the CPU.
        units: N.
        masks: locked masks (B, N) on h1, h2 as the gates read them.
        lengths: steps of each row, (B,), or None.

    Raises:
        ValueError: the recurrent weight has another shape than the cell needs.
    """

    def __init__(
        self, cell: Cell, weights: Weights, units: int, masks: Mapping[str, Tensor], lengths: Tensor | None
    ) -> None:
        assert cell.native is not None
        self.weights, self.units = weights, units
        self._limit = (slope_of(cell.native.max_forget_bits), cell.native.forgetting, cell.native.bounded)
        self.blocks, self.states = cell.blocks // PARTS, len(cell.states)
        self._hh = weights.tensors["hh"]
        if self._hh.shape != (cell.blocks * units, units):
            wanted = (cell.blocks * units, units)
            raise ValueError(f"weight 'hh' must be {wanted} for this cell, got {tuple(self._hh.shape)}")
        extra, scale = weights.responses.get("hh", (None, None))
        self._extra, self._scale = extra, scale
        self._masks = [masks[part].contiguous() if part in masks else None for part in cell.states[0]]
        self._lengths = None if lengths is None else lengths.long().contiguous()
        self._memory: dict[str, Tensor] = {}
        self._packs: tuple[Tensor, Tensor | None] | None = None

    @property
    def is_gru(self) -> bool:
        """Whether the cell is a RevGRU, which has no c."""
        return self.blocks == GRU_BLOCKS

    def heads(self, rows: int, steps: int, share: int | None) -> Tensor:
        """New heads for sequences of so many steps, (S, B, width)."""
        if share is not None:
            check_share(share, PARTS * self.states)
        turns = (share or default_share(steps, PARTS)) // PARTS
        width = -(-self.units // max(1, min(turns, self.units)))
        return torch.full((self.states, rows, width), HEAD_START, dtype=torch.float64)

    def room(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        recorded: bool,
        gates: Tensor | None = None,
        into: Tensor | None = None,
    ) -> Room:
        """Room for a chunk of inputs (K, B, I), which are projected into it unless its gates are known.

        Outputs go to y (K, B, H) and gates to `into` (K, B, G) if they are given. Rooms of a kernel share the memory
        of gates, rh and c.
        """
        shape = (*x.shape[:2], PARTS * self.units)
        gates = self._project(x, into) if gates is None else self._shared("gates", tuple(gates.shape)).copy_(gates)
        room = Room(gates, x.new_empty(shape) if y is None else y, x.new_empty(shape[1:]))
        if not recorded:
            return room
        if self.is_gru:
            return room._replace(rh=self._shared("rh", shape))
        return room._replace(c=self._shared("c", shape), c_start=x.new_empty(shape[1:]))

    def _project(self, x: Tensor, out: Tensor | None) -> Tensor:
        """The projected inputs (K, B, G), to be written over."""
        if out is None:
            out = self._shared("gates", (*x.shape[:2], PARTS * self.blocks * self.units))
        gates = self.weights.project(x, out)
        return gates if gates.data_ptr() == out.data_ptr() else out.copy_(gates)

    def packs(self) -> tuple[Tensor, Tensor | None]:
        """Recurrent weights laid out as the kernel reads them, from the first chunk on."""
        if self._packs is None:
            extra = None if self._extra is None else torch.ops.revtune.pack(self._extra, self.blocks)
            self._packs = torch.ops.revtune.pack(self._hh, self.blocks), extra
        return self._packs

    def forget_rooms(self) -> None:
        """Let go of the memory that the next chunk would use again; rooms that are held stay as they are."""
        self._memory = {}

    def rest(self) -> None:
        """Let go of all that can be made anew."""
        self.forget_rooms()
        self._packs = None

    def _shared(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Memory that is used again by the next chunk, which is no longer as a rule."""
        if name not in self._memory or len(self._memory[name]) < shape[0]:
            self._memory[name] = self._hh.new_empty(shape)
        return self._memory[name][: shape[0]]

    def forward(
        self,
        room: Room,
        counts: Tensor,
        heads: Tensor,
        first: int,
        keep: int,
        tally: Tensor | None = None,
        sliced: int = 0,
    ) -> tuple[Tensor, int, bool]:
        """Run a chunk: the words spilled, a number for where it began, and whether all states stayed in range.

        So many first units of h1 are put on floats after each step, and nothing is spilled for them.
        """
        buffers = (room.gates, counts, heads, *room.states(), room.rh)
        done: tuple[Tensor, int, bool] = torch.ops.revtune.forward(
            *buffers, *self._reading(), self._lengths, first, *self._limit, keep, tally, sliced
        )
        return done

    def infer(self, x: Tensor, y: Tensor, counts: Tensor) -> bool:
        """Run a whole sequence (T, B, I) without a way back, its outputs into y: whether all states stayed in range."""
        weights = self.weights.tensors
        packed, bias = torch.ops.revtune.pack_projection(weights["ih"]), weights.get("bias")
        x = x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()
        fine: bool = torch.ops.revtune.infer(
            x, packed, bias, counts, y, torch.empty_like(y[0]), *self._reading(), self._lengths, *self._limit
        )
        return fine

    def rewind(
        self, room: Room, counts: Tensor, heads: Tensor, words: Tensor, first: int, slices: Tensor | None = None
    ) -> tuple[int, bool]:
        """Undo a chunk: a number for where it began, and whether its words were used up exactly.

        `slices` are the sliced units before each step, (K, B, sliced).
        """
        buffers = (room.gates, counts, heads, words, *room.states(), room.rh)
        done: tuple[int, bool] = torch.ops.revtune.rewind(
            *buffers, *self._reading(), self._lengths, first, *self._limit, slices
        )
        return done

    def recall(self, room: Room) -> None:
        """Evaluate the gates of a chunk whose h is known."""
        torch.ops.revtune.recall(room.gates, room.y, room.y_start, room.rh, *self._reading())

    def reset(self, room: Room) -> None:
        """Evaluate r * h of a RevGRU's chunk whose gates and h are known."""
        if room.rh is None:
            return
        for half, mask in enumerate(self._masks[::-1]):
            r = room.gates.unflatten(-1, (PARTS * self.blocks, self.units))[:, :, half * self.blocks + 1]
            rh = room.rh.unflatten(-1, (PARTS, self.units))[:, :, half]
            for read, (gate, product) in self._reads(room, half, r, rh):
                torch.mul(gate, read if mask is None else read * mask, out=product)

    def recall_cells(self, room: Room, counts: Tensor, heads: Tensor, words: Tensor, first: int) -> bool:
        """Rewind c alone, after `recall`: whether its words were used up exactly."""
        buffers = (room.gates, counts, heads, words, *room.states())
        exact: bool = torch.ops.revtune.recall_cells(*buffers, self._lengths, first, *self._limit)
        return exact

    def gradient(self, room: Room, direction: Tensor, dy: Tensor | None, first: int) -> Tensor:
        """Carry `direction` (S, 2, B, N) and dy (K, B, H) back through a recorded chunk.

        Returns the gradient of the projected inputs (K, B, G), in place of the gates; weights' gradients are added up.
        """
        buffers = (room.gates, direction, *room.states())
        dy = None if dy is None else dy.contiguous()
        torch.ops.revtune.gradient(
            *buffers, self._hh, self._extra, self._scale, *self._masks, self._lengths, dy, first, *self._limit
        )
        for half in range(PARTS):
            self._add_products(room, half)
        return room.gates

    def _reading(self) -> list[Tensor | None]:
        return [*self.packs(), self._scale, *self._masks]

    def _add_products(self, room: Room, half: int) -> None:
        """The gradient of the rows of `hh` that a half's gates use."""
        n, first = self.units, half * self.blocks * self.units
        last = first + (2 if self.is_gru else LSTM_BLOCKS) * n
        mask, grads = self._masks[1 - half], room.gates[:, :, first:last]
        for read, (grad,) in self._reads(room, half, grads):
            self._add_product(slice(first, last), read if mask is None else read * mask, grad)
        if room.rh is not None:
            self._add_product(
                slice(last, last + n), room.rh[:, :, half * n : (half + 1) * n], room.gates[:, :, last : last + n]
            )

    def _reads(self, room: Room, half: int, *others: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        """The other half's h as this half's gates read it, with other tensors (K, ...) at those steps.

        Half 1 reads h1 after the step; half 0 reads h2 before it, which may be another tensor at the first step.
        """
        if half:
            return [(room.y[:, :, : self.units], list(others))]
        if room.y_before is not None:
            return [(room.y_before[:, :, self.units :], list(others))]
        pairs = [
            (room.y_start[None, :, self.units :], [other[:1] for other in others]),
            (room.y[:-1, :, self.units :], [other[1:] for other in others]),
        ]
        return pairs[: len(room.y)]

    def _add_product(self, rows: slice, value: Tensor, grads: Tensor) -> None:
        self.weights.add_product("hh", rows, value.flatten(0, 1), grads.flatten(0, 1), len(grads))


def stacked(parts: Mapping[str, Tensor], cell: Cell) -> Tensor:
    """Tensors (B, N) by part as one, (S, 2, B, N)."""
    return torch.stack([torch.stack([parts[part] for part in group]) for group in cell.states])


def unstacked(tensor: Tensor, cell: Cell) -> dict[str, Tensor]:
    """Views (B, N) by part of (S, 2, B, N)."""
    return {part: tensor[i, j] for i, group in enumerate(cell.states) for j, part in enumerate(group)}


def new_tally() -> Tensor | None:
    """Room to count how often each forget integer is used, if somebody is metering."""
    return torch.zeros(fixed.FORGET_ONE + 1, dtype=torch.int64) if metering.active() else None


def bits_of(tally: Tensor) -> float:
    """The bits that multiplying by the tallied forget integers loses."""
    lost = 10.0 - torch.arange(fixed.FORGET_ONE + 1, dtype=torch.float64).clamp_min(1).log2()
    return float(tally.double() @ lost)
