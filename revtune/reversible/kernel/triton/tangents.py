"""The tangent of a chunk, and what moves pre-activations besides h', in the order in which csrc/moving.h adds it.

Shapes: K steps, B rows, N units of a half, S states of the cell, G gates.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

PROJECTED, SHIFTED, IH_ANSWERS, HH_ANSWERS = tl.constexpr(1), tl.constexpr(2), tl.constexpr(4), tl.constexpr(8)
"""What of this there is, as bits of GIVEN."""


class Tangent(NamedTuple):
    """How a chunk whose gates are known would move.

    Attributes:
        state: the tangent of the state, in and out, (S, 2, B, N).
        dy: those of the outputs, (K, B, 2N).
        projected: W dx, (K, B, G), or None for zero.
        shift: that of the bias, (B, G), or None for zero.
        ih_answer: V x of a response, (K, B, G), or None.
        ih_scale: s of it, (B, G).
        hh_answer: V h likewise.
        hh_scale: s of it.
    """

    state: Tensor
    dy: Tensor
    projected: Tensor | None
    shift: Tensor | None
    ih_answer: Tensor | None
    ih_scale: Tensor | None
    hh_answer: Tensor | None
    hh_scale: Tensor | None

    @property
    def given(self) -> int:
        """GIVEN."""
        there = {
            PROJECTED: self.projected, SHIFTED: self.shift, IH_ANSWERS: self.ih_answer, HH_ANSWERS: self.hh_answer
        }  # fmt: skip
        return sum(bit.value for bit, tensor in there.items() if tensor is not None)

    def at(self, step: int) -> tuple[Tensor | None, ...]:
        """What is given of a step, (B, G) each, in the order of `moved`'s arguments."""
        of_steps = (self.projected, self.ih_answer, self.hh_answer)
        projected, ih, hh = (None if one is None else one[step] for one in of_steps)
        return projected, self.shift, ih, self.ih_scale, hh, self.hh_scale


@triton.jit
def moved(total, projected, shift, ih_answer, ih_scale, hh_answer, hh_scale, at, here, GIVEN: tl.constexpr):
    """Pre-activations' tangents at places of a step's gates, from those of their recurrent products."""
    if PROJECTED & GIVEN:
        total += tl.load(projected + at, mask=here, other=0.0)
    if SHIFTED & GIVEN:
        total += tl.load(shift + at, mask=here, other=0.0)
    if IH_ANSWERS & GIVEN:
        total += tl.load(ih_scale + at, mask=here, other=0.0) * tl.load(ih_answer + at, mask=here, other=0.0)
    if HH_ANSWERS & GIVEN:
        total += tl.load(hh_scale + at, mask=here, other=0.0) * tl.load(hh_answer + at, mask=here, other=0.0)
    return total
