"""A kernel with one layer's weights: chunks forward, rewound, recalled from outputs, and their gradients.

The time loop is in csrc/, or on a GPU in triton/. Here are the calls of their operators, and the
weights' gradients, one matmul a chunk.

Shapes: K steps of a chunk, B batch, N units of a part, H = 2N, G gates, S states of the cell (h, or h and c).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from revtune.reversible.cells import fixed
from revtune.reversible.cells.cell import Cell, slope_of
from revtune.reversible.cells.information_buffer import HEAD_START, check_share, default_share
from revtune.reversible.kernel.asked_once import Number, Truth
from revtune.reversible.kernel.chunk_buffers import GRU_BLOCKS, LSTM_BLOCKS, PARTS, ChunkBuffers
from revtune.reversible.kernel.engine import operators
from revtune.reversible.kernel.weights import Weights
from revtune.reversible.own_pages import in_own_pages


class Keep(IntEnum):
    """What a forward chunk keeps of the information buffer; numbers as in csrc/chunk.h."""

    NOTHING = 0
    """No buffer: the ten lowest bits of a state are rounded away."""

    HEADS = 1
    """The buffer's arithmetic, with its words dropped."""

    CELLS = 2
    """The buffer's arithmetic, with the words of c kept: outputs tell h."""

    EVERYTHING = 3
    """All words: what rewinding needs."""


class Kernel:
    """The operators of a kernel with a layer's weights, masks and lengths.

    Args:
        cell: a RevGRU or RevLSTM.
        weights: the layer's weights, float32, which know whose kernel it is.
        units: N.
        masks: locked masks (B, N) on h1, h2 as the gates read them.
        lengths: the step at which each row ends, (B,), or None.
        starts: the first step that each row runs, (B,), or None.
        resets: whether a row begins anew before a step, (T, B) bool, or None for never.
        anew: the states from which rows do so, in counts, (S, 2, B, N).
    """

    def __init__(
        self,
        cell: Cell,
        weights: Weights,
        units: int,
        masks: Mapping[str, Tensor],
        lengths: Tensor | None,
        resets: Tensor | None = None,
        anew: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> None:
        assert cell.native is not None
        self.weights, self.units = weights, units
        # As the operators take them: slope, forgetting, bounded.
        self.limit = (slope_of(cell.native.max_forget_bits), cell.native.forgetting, cell.native.bounded)
        self.blocks, self.states = cell.blocks // PARTS, len(cell.states)
        self.hh = weights.tensors["hh"]
        assert self.hh.shape == (cell.blocks * units, units)
        extra, scale = weights.added().get("hh", (None, None))
        self._extra, self._scale = extra, scale
        self.masks = [masks[part].contiguous() if part in masks else None for part in cell.states[0]]
        self.lengths, self.starts = (None if one is None else one.long().contiguous() for one in (lengths, starts))
        self.resets, self.anew = None if resets is None else resets.contiguous().view(torch.uint8), anew
        # Known to the host, so that no chunk waits for a device
        self._begin_at = bytearray() if resets is None else bytearray(resets.any(1).tolist())
        self._reused: dict[str, Tensor] = {}
        self._packs: tuple[Tensor, Tensor | None] | None = None

    @property
    def operators(self) -> Any:
        """The operators; looked up, as they cannot be copied with the kernel."""
        return operators(self.weights.engine)

    @property
    def rooms(self) -> int:
        """How many tensors like a chunk's gates its way back holds beside them: what responses give, and a tangent."""
        responses = len(self.weights.responses)
        return responses if self.weights.added() or not responses else responses + 1

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
        return torch.full((self.states, rows, width), HEAD_START, dtype=torch.float64, device=self.hh.device)

    def stacks(self, heads: Tensor) -> int:
        """How many stacks the words of a chunk are in, of these heads (S, B, width): one a row, or more on a GPU."""
        rows, width = heads.shape[1:]
        return rows if self.weights.engine == "native" else self.operators.stacks(rows, width)

    def chunk_buffers(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        recorded: bool,
        first: int = 0,
        gates: Tensor | None = None,
        into: Tensor | None = None,
        reused: bool = False,
    ) -> ChunkBuffers:
        """The tensors for a chunk of inputs (K, B, I), which share the memory of gates, rh and c with the last chunk's.

        Args:
            x: the inputs.
            y: where outputs go, (K, B, H); by default a new tensor, or with `reused` the last chunk's memory.
            recorded: whether the chunk's gradient will be taken.
            first: the number of its first step.
            gates: the chunk's gates, (K, B, G), if they are known; else the projected inputs take their place.
            into: where gates go, (K, B, G), if not to the memory that chunks share.
            reused: whether outputs and states before the first step share their memory with the last chunk's too.
        """
        shape = (*x.shape[:2], PARTS * self.units)

        def start(name: str) -> Tensor:
            return self._shared(name, (1, *shape[1:]))[0] if reused else x.new_empty(shape[1:])

        if y is None:
            y = self._shared("y", shape) if reused else x.new_empty(shape)
        known, added = gates is not None, self.weights.added()
        ih = self._room("ih", x) if "ih" in added and not known else None
        gates = self._project(x, into, ih) if gates is None else self._shared("gates", tuple(gates.shape)).copy_(gates)
        chunk = ChunkBuffers(gates, y, start("y_start"), resets=self._resets_at(first, len(x)))
        if not recorded:
            return chunk
        hh = self._room("hh", x) if "hh" in added and not known and "hh.s" in self.weights.wanted else None
        chunk = chunk._replace(ih_answer=ih, hh_answer=hh)
        if self.is_gru:
            return chunk._replace(rh=self._shared("rh", shape))
        return chunk._replace(c=self._shared("c", shape), c_start=start("c_start"))

    def _resets_at(self, first: int, steps: int) -> Tensor | None:
        """Where rows begin anew in a chunk of so many steps, (K, B); None where none does."""
        if self.resets is None:
            return None
        return self.resets[first : first + steps] if any(self._begin_at[first : first + steps]) else None

    def _anew(self, chunk: ChunkBuffers) -> tuple[Tensor | None, Tensor | None]:
        """Where a chunk's rows begin anew and from what, in the order of the operators' arguments."""
        return chunk.resets, None if chunk.resets is None else self.anew

    def _room(self, name: str, x: Tensor) -> Tensor:
        """The memory, which chunks share, for what a response gives at a chunk's steps, (K, B, G)."""
        return self._shared(f"answer {name}", (*x.shape[:2], len(self.hh)))

    def _project(self, x: Tensor, out: Tensor | None, answer: Tensor | None) -> Tensor:
        """The projected inputs (K, B, G), to be written over."""
        if out is None:
            out = self._shared("gates", (*x.shape[:2], PARTS * self.blocks * self.units))
        projected = self.weights.project(x, out, answer)  # a layer without `ih` leaves `out` unused
        return projected if projected.data_ptr() == out.data_ptr() else out.copy_(projected)

    def packs(self) -> tuple[Tensor, Tensor | None]:
        """Recurrent weights laid out as the kernel reads them, once for all chunks."""
        if self._packs is None:
            self._packs = (
                self._packed(self.hh),
                None if self._extra is None else self._packed(self._extra),
            )
        return self._packs

    def _packed(self, weight: Tensor) -> Tensor:
        packed, mask = in_own_pages(weight, (self.operators.packed_size(self.blocks, self.units),)), self.weights.mask
        self.operators.pack_into(packed, weight if mask is None else mask.applied(weight), self.blocks)
        return packed

    def forget_buffers(self) -> None:
        """Let go of the memory that the next chunk would use again. Chunks that are still held keep theirs."""
        self._reused = {}

    def rest(self) -> None:
        """Let go of all that can be made anew."""
        self.forget_buffers()
        self._packs = None

    def _shared(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Memory that the next chunk uses again, unless it has more steps."""
        if name not in self._reused or len(self._reused[name]) < shape[0]:
            self._reused[name] = in_own_pages(self.hh, shape)
        return self._reused[name][: shape[0]]

    def forward(
        self,
        chunk: ChunkBuffers,
        counts: Tensor,
        heads: Tensor,
        first: int,
        keep: Keep,
        tally: Tensor | None = None,
        sliced: int = 0,
    ) -> tuple[Tensor, Number, bool]:
        """Run a chunk.

        Args:
            chunk: its tensors.
            counts: the state, (S, 2, B, N), in and out.
            heads: the buffer's heads, (S, B, width), in and out.
            first: the number of its first step.
            keep: what is kept of the buffer.
            tally: where each use of a forget integer is counted.
            sliced: how many first units of h1 are rounded to floats after each step; nothing is spilled for them.

        Returns:
            The words spilled, a digest of counts and heads before the chunk, and whether all states stayed in range.
        """
        result: tuple[Tensor, Number, bool] = self.operators.forward(
            chunk.gates, counts, heads, *chunk.states(), chunk.rh, *self._reading(), self.lengths, first,
            *self.limit, keep, tally, sliced, chunk.hh_answer, *self._anew(chunk), self.starts,
        )  # fmt: skip
        return result

    def infer(self, x: Tensor, y: Tensor, counts: Tensor) -> bool:
        """Run a whole sequence (T, B, I) without a buffer, outputs into y. True if all states stayed in range."""
        weights = self.weights.tensors
        packed, bias = self.operators.pack_projection(weights["ih"]), weights.get("bias")
        x = x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()
        fine: bool = self.operators.infer(
            x, packed, bias, counts, y, torch.empty_like(y[0]), *self._reading(), self.lengths, *self.limit,
            self.resets, self.anew,
        )  # fmt: skip
        return fine

    def rewind(
        self,
        chunk: ChunkBuffers,
        counts: Tensor,
        heads: Tensor,
        words: Tensor,
        first: int,
        slices: Tensor | None = None,
    ) -> tuple[Number, Truth]:
        """Undo a chunk; arguments as in `forward`, and the sliced units before each step, (K, B, sliced).

        Returns a digest of counts and heads before the chunk, and whether its words were used up exactly.
        """
        if not self._fit(words, heads):
            return 0, False
        result: tuple[Number, Truth] = self.operators.rewind(
            chunk.gates, counts, heads, words, *chunk.states(), chunk.rh, *self._reading(), self.lengths, first,
            *self.limit, slices, chunk.hh_answer, *self._anew(chunk), self.starts,
        )  # fmt: skip
        return result

    def recall(self, chunk: ChunkBuffers) -> None:
        """Evaluate the gates of a chunk whose h is known."""
        self.operators.recall(
            chunk.gates, chunk.y, chunk.y_start, chunk.rh, *self._reading(), chunk.hh_answer, *self._anew(chunk)
        )

    def recall_reset(self, chunk: ChunkBuffers) -> None:
        """Evaluate r * h of a RevGRU's chunk whose gates and h are known."""
        if chunk.rh is None:
            return
        for half, mask in enumerate(self.masks[::-1]):  # half 0 reads h2, half 1 reads h1
            r = chunk.gates.unflatten(-1, (PARTS * self.blocks, self.units))[:, :, half * self.blocks + 1]
            rh = chunk.rh.unflatten(-1, (PARTS, self.units))[:, :, half]
            for read, (gate, product) in self._reads(chunk, half, r, rh):
                torch.mul(gate, read if mask is None else read * mask, out=product)

    def recall_cells(self, chunk: ChunkBuffers, counts: Tensor, heads: Tensor, words: Tensor, first: int) -> Truth:
        """Rewind c alone, once gates and h are known. Returns whether its words were used up exactly."""
        exact: Truth = self._fit(words, heads) and self.operators.recall_cells(
            chunk.gates, counts, heads, words, *chunk.states(), self.lengths, first, *self.limit, *self._anew(chunk)
        )
        return exact

    def _fit(self, words: Tensor, heads: Tensor) -> bool:
        """Whether a chunk's words may be as many as they say; Triton's operators see to that on their device."""
        stacks = self.stacks(heads)
        if self.weights.waits:
            return not words.numel() or words.numel() >= 2 * stacks
        return _fit(words, stacks)

    def gradient(
        self, chunk: ChunkBuffers, direction: Tensor, dy: Tensor | None, first: int, anew: Tensor | None = None
    ) -> Tensor:
        """Carry `direction` (S, 2, B, N) and dy (K, B, H) back through a recorded chunk.

        What comes to where a row begins anew is added to `anew`, like `direction`, if it is given. Returns the gradient
        of the projected inputs (K, B, G), in place of the gates; weights' gradients are added up.
        """
        dy = None if dy is None else dy.contiguous()
        self.operators.gradient(
            chunk.gates, direction, *chunk.states(), self.hh, self._extra, self._scale, *self.masks, self.lengths,
            dy, first, *self.limit, *self._anew(chunk), None if chunk.resets is None else anew, self.starts,
            *(self.weights.mask or ()),
        )  # fmt: skip
        self._add_products(chunk)
        return chunk.gates

    def projection_gradient(self, chunk: ChunkBuffers, x: Tensor, *, wanted: bool) -> Tensor | None:
        """The gradient (K, B, I) of a chunk's inputs, if it is wanted, once `gradient` has been taken.

        Those of the projection's weights are added up.
        """
        weights, grads, scaled = self.weights, chunk.gates, None
        carried = wanted and "ih" in weights.added()
        if carried or weights.learns("ih"):
            scaled = self._ih_answer(chunk, x, "ih.s" in weights.wanted)
            weights.scale_back("ih", grads, scaled, scaled=carried or "ih.V" in weights.wanted)
        weights.add_outer("ih", slice(None), x, grads)
        if scaled is not None:
            weights.add_outer("ih.V", slice(None), x, scaled)
        weights.add_bias(grads)
        return weights.project_back(grads, scaled) if wanted else None

    def tangent(
        self, chunk: ChunkBuffers, dx: Tensor | None, shift: Tensor | None, state: Tensor, first: int
    ) -> Tensor:
        """The tangent of the outputs of a chunk that is `answered`: how they would move with what products are given.

        Args:
            chunk: with its gates and states.
            dx: the tangent of its inputs, (K, B, I), or None for zero.
            shift: that of the bias, (B, G), or None for zero.
            state: that of the state before it, (S, 2, B, N); after it in the end.
            first: its first step.

        Returns:
            (K, B, H).
        """
        weights, responses, dy = self.weights, self.weights.responses, torch.empty_like(chunk.y)
        if dx is not None:
            weight = weights.tensors.get("ih")
            dx = dx.contiguous() if weight is None else weights.linear(dx, weight, self._room("tangent", dx))
        (_, ih_scale), (_, hh_scale) = (responses.get(name, (None, None)) for name in ("ih", "hh"))
        self.operators.tangent(
            chunk.gates, state, *chunk.states(), self.packs()[0], *self.masks, self.lengths, dx,
            None if shift is None else shift.contiguous(), chunk.ih_answer, ih_scale, chunk.hh_answer, hh_scale, dy,
            first, *self.limit, *self._anew(chunk), self.starts,
        )  # fmt: skip
        return dy

    def answered(self, chunk: ChunkBuffers, x: Tensor) -> ChunkBuffers:
        """The chunk with what every response gives of its products."""
        responses = self.weights.responses
        return chunk._replace(
            ih_answer=self._ih_answer(chunk, x, True) if "ih" in responses else None,
            hh_answer=self._hh_answer(chunk, True) if "hh" in responses else None,
        )

    def _ih_answer(self, chunk: ChunkBuffers, x: Tensor, needed: bool) -> Tensor:
        """V x of a chunk, if its pass has not noted it; memory with no numbers yet if it is not needed."""
        if chunk.ih_answer is not None:
            return chunk.ih_answer
        room = self._room("ih", x)
        return self.weights.linear(x, self.weights.responses["ih"][0], room) if needed else room

    def _hh_answer(self, chunk: ChunkBuffers, needed: bool) -> Tensor:
        """V h of a chunk likewise."""
        if chunk.hh_answer is not None:
            return chunk.hh_answer
        room, extra, mask = self._room("hh", chunk.gates), self.weights.responses["hh"][0], self.weights.mask
        for rows, read, (part,) in self._products(chunk, room) if needed else ():
            self.weights.linear(read, extra[rows] if mask is None else mask.applied(extra, rows), part)
        return room

    def _reading(self) -> list[Tensor | None]:
        """What gates read besides the state, in the order of the operators' arguments."""
        return [*self.packs(), self._scale, *self.masks]

    def _add_products(self, chunk: ChunkBuffers) -> None:
        """Add the gradients of `hh` and its response."""
        weights, grads = self.weights, [chunk.gates]
        if weights.learns("hh"):
            scaled = self._hh_answer(chunk, "hh.s" in weights.wanted)
            weights.scale_back("hh", chunk.gates, scaled, scaled="hh.V" in weights.wanted)
            grads.append(scaled)
        names = [name for name in ("hh", "hh.V") if name in weights.wanted]
        for rows, read, (own, *other) in self._products(chunk, *grads) if names else ():
            weights.add_outer("hh", rows, read, own)
            for scaled in other:
                weights.add_outer("hh.V", rows, read, scaled)

    def _products(self, chunk: ChunkBuffers, *tensors: Tensor) -> Iterator[tuple[slice, Tensor, list[Tensor]]]:
        """A chunk's recurrent products: rows of `hh`, what they read, and their part of tensors (K, B, G).

        z and r of a RevGRU read h, its g reads r * h.
        """
        n = self.units
        for half, mask in enumerate(self.masks[::-1]):  # half 0 reads h2, half 1 reads h1
            first = half * self.blocks * n
            rows = slice(first, first + (2 if self.is_gru else LSTM_BLOCKS) * n)
            for read, parts in self._reads(chunk, half, *[tensor[:, :, rows] for tensor in tensors]):
                yield rows, read if mask is None else read * mask, parts
            if chunk.rh is not None:
                rows = slice(rows.stop, rows.stop + n)
                yield rows, chunk.rh[:, :, half * n : (half + 1) * n], [tensor[:, :, rows] for tensor in tensors]

    def _reads(self, chunk: ChunkBuffers, half: int, *others: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        """The other half's h as this half's gates read it, with other tensors (K, ...) at those steps.

        Half 1 reads h1 after the step. Half 0 reads h2 before it, which may be another tensor at the first step.
        """
        if half:
            return [(chunk.y[:, :, : self.units], list(others))]
        if chunk.resets is not None:
            return [(self._laid_before(chunk, chunk.resets), list(others))]
        if chunk.y_before is not None:
            return [(chunk.y_before[:, :, self.units :], list(others))]
        pairs = [
            (chunk.y_start[None, :, self.units :], [other[:1] for other in others]),
            (chunk.y[:-1, :, self.units :], [other[1:] for other in others]),
        ]
        return pairs[: len(chunk.y)]  # a chunk of one step has no second piece

    def _laid_before(self, chunk: ChunkBuffers, resets: Tensor) -> Tensor:
        """h2 as each step of a chunk finds it, (K, B, N), where rows begin anew at some."""
        assert self.anew is not None
        before = self._shared("before", (*chunk.y.shape[:2], self.units))
        before[0], before[1:] = chunk.y_start[:, self.units :], chunk.y[:-1, :, self.units :]
        if self.weights.waits:  # which steps and rows they are is a question
            return torch.where(resets.bool().unsqueeze(-1), fixed.from_counts(self.anew[0, 1], before.dtype), before)
        steps, rows = resets.nonzero(as_tuple=True)
        before[steps, rows] = fixed.from_counts(self.anew[0, 1, rows], before.dtype)
        return before


def _fit(words: Tensor, stacks: int) -> bool:
    """Whether a chunk's words are as many as they say, stack by stack, before them (csrc/words.h)."""
    if not words.numel():
        return True
    counts = words[: 2 * stacks].clone().view(torch.int32) if words.numel() >= 2 * stacks else words
    return len(counts) == stacks and int(counts.min()) >= 0 and int(counts.sum()) == words.numel() - 2 * stacks
