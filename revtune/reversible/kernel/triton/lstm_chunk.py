"""A chunk of RevLSTM: the launches of its kernels."""

from __future__ import annotations

import triton
from torch import Tensor

from revtune.reversible.kernel.triton import lstm, lstm_gradient, lstm_tangent
from revtune.reversible.kernel.triton.chunk import CUT, SHALLOW_CUT, Chunk
from revtune.reversible.kernel.triton.launching import ELEMENTS, FEW_ROWS, HEADS, OPTIONS, ROOMY, ROWS, UNITS
from revtune.reversible.kernel.triton.stacks import Stacks, tiles
from revtune.reversible.kernel.triton.tangents import Tangent
from revtune.reversible.kernel.triton.whole import Whole


class LstmChunk(Chunk):
    """A `Chunk`."""

    blocks = 5

    def evaluate(self, first: int, last: int, half: int, source: Tensor, packed: Tensor) -> None:
        (mask, masked), positions = self.masked(half), (last - first) * self.rows
        resets, anew, begins = self.read_anew(first, half)
        *response, responds = self.responding(first, last, half)
        lstm.evaluate[triton.cdiv(positions, ROWS), triton.cdiv(self.blocks * self.units, UNITS)](
            self.half_gates(first, last, half), source, self.weight(packed, half), *response, mask, resets, anew,
            positions, self.rows, self.units, source.stride(0), RESPONSE=responds, MASKED=masked, ANEW=begins,
            **self.cut, **OPTIONS,
        )  # fmt: skip

    def turn(
        self, step: int, half: int, packed: Tensor, whole: Whole, stacks: Stacks, keep: int, *, back: bool
    ) -> None:
        (lengths, starts, ragged), width = self.runs(), whole.heads.shape[2]
        into = self.before(step, half) if back else self.half(self.y[step], half)
        cell = into if self.c is None else self._cell(step - 1 if back else step, half)
        passes = [(0, self.units, False, True, True)]
        if self.slices.units and not half:  # c and h apart
            passes = [(0, self.units, False, True, False), *((*part, False, True) for part in self.parts(half))]
        for begin, end, sliced, of_c, of_h in reversed(passes) if back else passes:
            lstm.turn[triton.cdiv(self.rows, FEW_ROWS), tiles(width)](
                self.half_gates(step, step + 1, half), whole.counts[1, half], whole.counts[0, half], whole.heads[1],
                whole.heads[0], *stacks[:3], into, cell, whole.flags, lengths, starts, self.slices_before(step),
                self.rows, self.units, begin, end, width, stacks.capacity, step, self.limit.slope, self.limit.floor,
                self.limit.share, FORGETTING=self.limit.forgetting, KEEP=keep, BACK=back, RAGGED=ragged,
                RECORDED=self.c is not None, CELL=of_c, HIDDEN=of_h, SLICED=sliced,
                TURNS=whole.turns_of(end - begin), ROWS=FEW_ROWS, HEADS=HEADS, **OPTIONS,
            )  # fmt: skip

    def complete(self, half: int, packed: Tensor) -> None:
        """Nothing is left: all gates read h' alone."""

    def recall_cells(self, whole: Whole, stacks: Stacks) -> None:
        """Rewind c through all steps, whose gates are known."""
        (lengths, _, ragged), width = self.runs(), whole.heads.shape[2]
        resets, fresh = self.course.resets, self.course.fresh
        lstm.recall_cells[triton.cdiv(self.rows, FEW_ROWS), tiles(width)](
            self.gates, whole.counts[1], whole.heads[1], *stacks[:3], self.c, whole.flags, lengths,
            lengths if resets is None else resets, lengths if fresh is None else fresh[1], self.rows, self.units, width,
            self.steps, self.limit.slope, self.limit.floor, FORGETTING=self.limit.forgetting, RAGGED=ragged,
            ANEW=resets is not None, TURNS=whole.turns, ROWS=FEW_ROWS, HEADS=HEADS, **ROOMY,
        )  # fmt: skip

    def differentiate(self, step: int, half: int, direction: Tensor, weight: Tensor) -> None:
        gates, before = self.half_gates(step, step + 1, half), self.before(step, half)
        c_before = self._cell(step - 1, half)
        (lengths, starts, ragged), (mask, masked) = self.runs(), self.masked(half)
        (resets, anew_h, begins), (_, anew_c, _) = self.anew(step, half), self.anew(step, half, 1)
        lstm_gradient.update[self.rows, triton.cdiv(self.units, ELEMENTS)](
            gates, direction[0, half], direction[1, half], before, c_before, self._cell(step, half), lengths,
            starts, resets, anew_h, anew_c, self.units, before.stride(0), c_before.stride(0), step,
            self.limit.slope, self.limit.floor, self.limit.share, FORGETTING=self.limit.forgetting, RAGGED=ragged,
            ANEW=begins, SIZE=ELEMENTS, **OPTIONS,
        )  # fmt: skip
        extra, scale, _, responds = self.responding(step, step + 1, half)
        lstm_gradient.read[triton.cdiv(self.rows, ROWS), triton.cdiv(self.units, UNITS)](
            gates, self.weight(weight, half), extra, scale, mask, direction[0, 1 - half], self.rows, self.units,
            RESPONSE=responds, MASKED=masked, **CUT, **OPTIONS,
        )  # fmt: skip

    def push_forward(self, step: int, half: int, tangent: Tangent, packed: Tensor) -> None:
        before, c_before = self.before(step, half), self._cell(step - 1, half)
        (lengths, starts, ragged), (mask, masked) = self.runs(), self.masked(half)
        (resets, anew_h, begins), (_, anew_c, _) = self.anew(step, half), self.anew(step, half, 1)
        state, moving = tangent.state[:, half], self.moving(step, half, tangent)
        by = before.new_empty(self.rows, self.blocks * self.units)
        lstm_tangent.read[triton.cdiv(self.rows, ROWS), triton.cdiv(self.blocks * self.units, UNITS)](
            self.weight(packed, half), tangent.state[0, 1 - half], by, mask, *moving, self.rows, self.units,
            GIVEN=tangent.given, MASKED=masked, **SHALLOW_CUT, **OPTIONS,
        )  # fmt: skip
        lstm_tangent.update[self.rows, triton.cdiv(self.units, ELEMENTS)](
            self.half_gates(step, step + 1, half), by, *state, self.half(tangent.dy[step], half), before, c_before,
            self._cell(step, half), lengths, starts, resets, anew_h, anew_c, self.units, before.stride(0),
            c_before.stride(0), step, self.limit.slope, self.limit.floor, self.limit.share,
            FORGETTING=self.limit.forgetting, RAGGED=ragged, ANEW=begins, SIZE=ELEMENTS, **OPTIONS,
        )  # fmt: skip

    def _cell(self, step: int, half: int) -> Tensor:
        """A half's c after a step, (B, N); -1 for before the first."""
        assert self.c is not None and self.c_start is not None
        return self.half(self.c[step] if step >= 0 else self.c_start, half)
