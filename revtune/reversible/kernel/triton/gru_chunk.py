"""A chunk of RevGRU: the launches of its kernels."""

from __future__ import annotations

import triton
from torch import Tensor

from revtune.reversible.kernel.triton import gru, gru_gradient, gru_tangent
from revtune.reversible.kernel.triton.chunk import CUT, NO_SLICES, SHALLOW_CUT, Chunk, Course, Limit, Slices
from revtune.reversible.kernel.triton.launching import ELEMENTS, HEADS, OPTIONS, ROWS, UNITS
from revtune.reversible.kernel.triton.responses import NO_RESPONSE, Response
from revtune.reversible.kernel.triton.stacks import Stacks, tiles
from revtune.reversible.kernel.triton.tangents import Tangent
from revtune.reversible.kernel.triton.whole import Whole


class GruChunk(Chunk):
    """A `Chunk`.

    Args:
        rh: where r * h' of each step goes, (K, B, 2N), or of one step after the other, (1, B, 2N).
    """

    blocks = 3

    def __init__(
        self, gates: Tensor, states: tuple[Tensor, Tensor, Tensor | None, Tensor | None], rh: Tensor,
        masks: tuple[Tensor | None, Tensor | None], course: Course, limit: Limit, slices: Slices = NO_SLICES,
        response: Response = NO_RESPONSE,
    ) -> None:  # fmt: skip
        super().__init__(gates, states, masks, course, limit, slices, response)
        self.rh = rh

    def evaluate(self, first: int, last: int, half: int, source: Tensor, packed: Tensor) -> None:
        (mask, masked), rh = self.masked(half), self._reset(first, last, half)
        resets, anew, begins = self.read_anew(first, half)
        *response, responds = self.responding(first, last, half)
        positions = (last - first) * self.rows
        gru.evaluate[triton.cdiv(positions, ROWS), triton.cdiv(self.units, UNITS)](
            self.half_gates(first, last, half), source, rh, self.weight(packed, half), *response, mask, resets, anew,
            positions, self.rows, self.units, source.stride(0), rh.stride(0), RESPONSE=responds, MASKED=masked,
            ANEW=begins, **self.cut, **OPTIONS,
        )  # fmt: skip

    def turn(
        self, step: int, half: int, packed: Tensor, whole: Whole, stacks: Stacks, keep: int, *, back: bool
    ) -> None:
        (lengths, starts, ragged), rh, width = self.runs(), self._reset(step, step + 1, half), whole.heads.shape[2]
        into = self.before(step, half) if back else self.half(self.y[step], half)
        *response, responds = self.responding(step, step + 1, half)
        for begin, end, sliced in self.parts(half):
            gru.turn[triton.cdiv(self.rows, ROWS), tiles(width)](
                self.half_gates(step, step + 1, half), rh, self.weight(packed, half), *response,
                whole.counts[0, half], whole.heads[0], *stacks[:3], into, whole.flags, lengths, starts,
                self.slices_before(step), self.rows, self.units, begin, end, width, stacks.capacity, step,
                rh.stride(0), self.limit.slope, self.limit.floor, RESPONSE=responds, FORGETTING=self.limit.forgetting,
                KEEP=keep, BACK=back, RAGGED=ragged, SLICED=sliced, TURNS=whole.turns_of(end - begin), ROWS=ROWS,
                HEADS=HEADS, DEPTH=self.cut["DEPTH"], **OPTIONS,
            )  # fmt: skip

    def complete(self, half: int, packed: Tensor) -> None:
        rh, positions = self._reset(0, self.steps, half), self.steps * self.rows
        *response, responds = self.responding(0, self.steps, half)
        gru.propose[triton.cdiv(positions, ROWS), triton.cdiv(self.units, UNITS)](
            self.half_gates(0, self.steps, half), rh, self.weight(packed, half), *response, positions, self.rows,
            self.units, rh.stride(0), RESPONSE=responds, **self.cut, **OPTIONS,
        )  # fmt: skip

    def differentiate(self, step: int, half: int, direction: Tensor, weight: Tensor) -> None:
        gates, own = self.half_gates(step, step + 1, half), self.weight(weight, half)
        before, source = self.before(step, half), self.read(step, half)
        (lengths, starts, ragged), (mask, masked) = self.runs(), self.masked(half)
        resets, anew, begins = self.anew(step, half)
        gru_gradient.update[self.rows, triton.cdiv(self.units, ELEMENTS)](
            gates, direction[0, half], before, lengths, starts, resets, anew, self.units, before.stride(0),
            step, self.limit.slope, self.limit.floor, FORGETTING=self.limit.forgetting, RAGGED=ragged, ANEW=begins,
            SIZE=ELEMENTS, **OPTIONS,
        )  # fmt: skip
        grid = (triton.cdiv(self.rows, ROWS), triton.cdiv(self.units, UNITS))
        through = direction.new_empty(direction[0, half].shape)
        resets, anew, begins = self.read_anew(step, half)
        extra, scale, _, responds = self.responding(step, step + 1, half)
        gru_gradient.reset[grid](
            gates, own, extra, scale, source, mask, resets, anew, through, self.rows, self.units, source.stride(0),
            RESPONSE=responds, MASKED=masked, ANEW=begins, **CUT, **OPTIONS,
        )  # fmt: skip
        gru_gradient.read[grid](
            gates, own, extra, scale, through, mask, direction[0, 1 - half], self.rows, self.units, RESPONSE=responds,
            MASKED=masked, **CUT, **OPTIONS,
        )  # fmt: skip

    def push_forward(self, step: int, half: int, tangent: Tangent, packed: Tensor) -> None:
        gates, weight, given = self.half_gates(step, step + 1, half), self.weight(packed, half), tangent.given
        state, other, moving = tangent.state[0, half], tangent.state[0, 1 - half], self.moving(step, half, tangent)
        before, source, reset = self.before(step, half), self.read(step, half), state.new_empty(state.shape)
        (lengths, starts, ragged), (mask, masked) = self.runs(), self.masked(half)
        (resets, anew, begins), (_, read_anew, read_begins) = self.anew(step, half), self.read_anew(step, half)
        grid = (triton.cdiv(self.rows, ROWS), triton.cdiv(self.units, UNITS))
        gru_tangent.keep[grid](
            gates, weight, state, other, reset, before, source, mask, lengths, starts, resets, anew, read_anew,
            *moving, self.rows, self.units, before.stride(0), source.stride(0), step, self.limit.slope,
            self.limit.floor, GIVEN=given, FORGETTING=self.limit.forgetting, MASKED=masked, ANEW=begins,
            READ_ANEW=read_begins, RAGGED=ragged, **SHALLOW_CUT, **OPTIONS,
        )  # fmt: skip
        gru_tangent.propose[grid](
            gates, weight, state, reset, self.half(tangent.dy[step], half), lengths, starts, *moving, self.rows,
            self.units, step, self.limit.slope, self.limit.floor, GIVEN=given, FORGETTING=self.limit.forgetting,
            RAGGED=ragged, **SHALLOW_CUT, **OPTIONS,
        )  # fmt: skip

    def _reset(self, first: int, last: int, half: int) -> Tensor:
        """Where r * h' of some steps goes, (M, N)."""
        steps = self.rh if len(self.rh) == 1 else self.rh[first:last]
        return self.half(steps.flatten(0, 1), half)
