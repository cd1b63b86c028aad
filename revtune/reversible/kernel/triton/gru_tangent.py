"""The tangent of RevGRU's half step, as csrc/gru.h and csrc/moving.h, where a gate's pre-activation moves by a':

    z' = m s (1 - s) a_z'    r' = r (1 - r) a_r'    g' = (1 - g^2) a_g'    h' <- z h' + (h - g) z' + (1 - z) g'

s is the unrounded z, m the slope of its limit. `keep` moves h with z and gives the tangent of r * h', `propose` moves h
with g.

Shapes: B rows, N units. Gates (B, 6N) are known.
"""

import triton
import triton.language as tl

from revtune.reversible.kernel.triton.arithmetic import forget_integer
from revtune.reversible.kernel.triton.gru import read_pair
from revtune.reversible.kernel.triton.product import chain, read_part
from revtune.reversible.kernel.triton.rows import beginning, found, running
from revtune.reversible.kernel.triton.tangents import moved


@triton.jit(do_not_specialize=["rows", "step"])  # compiled for one row alone, ptxas spills on sm_120
def keep(
    gates, weight, state, other, reset, before, source, mask, lengths, starts, resets, anew, read_anew, projected,
    shift, ih_answer, ih_scale, hh_answer, hh_scale, rows, units, before_stride, source_stride, step, slope, floor,
    GIVEN: tl.constexpr, FORGETTING: tl.constexpr, MASKED: tl.constexpr, ANEW: tl.constexpr, READ_ANEW: tl.constexpr,
    RAGGED: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """h's tangent `state` as far as z moves it, and that of r * h' into `reset`, from `other`, that of h' (B, N)."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit = (tl.program_id(1) * UNITS + tl.arange(0, UNITS)).to(tl.int64)
    live, wide = (row < rows)[:, None], (unit < units)[None, :]
    sum_z, sum_r = read_pair(
        other, other, live, mask, weight, row, row, unit, live, wide, units, units,
        False, MASKED, ROWS, UNITS, DEPTH,
    )  # fmt: skip
    here = live & wide
    at, place = row[:, None] * 6 * units + unit[None, :], row[:, None] * units + unit[None, :]
    da_z = moved(sum_z, projected, shift, ih_answer, ih_scale, hh_answer, hh_scale, at, here, GIVEN)
    da_r = moved(sum_r, projected, shift, ih_answer, ih_scale, hh_answer, hh_scale, at + units, here, GIVEN)
    begins = beginning(resets, row, row < rows)[:, None] if ANEW else live
    r = tl.load(gates + at + units, mask=here, other=0.0)
    read = read_part(source, read_anew, begins, mask, row, row, unit, here, source_stride, units, READ_ANEW, MASKED)
    d_read = read_part(other, other, live, mask, row, row, unit, here, units, units, False, MASKED)
    tl.store(reset + place, r * d_read + r * (1.0 - r) * read * da_r, mask=here)
    s = tl.load(gates + at, mask=here, other=0.5)
    g = tl.load(gates + at + 2 * units, mask=here, other=0.0)
    d = tl.load(state + place, mask=here, other=0.0)
    if FORGETTING:
        z = forget_integer(s, slope, floor, 1024).to(tl.float32) * 0.0009765625
        h = found(before, anew, begins, row[:, None] * before_stride + unit[None, :], place, here, ANEW)
        new = z * d + slope * s * (1.0 - s) * (h - g) * da_z
    else:
        new = d + slope * s * (1.0 - s) * (0.0 - g) * da_z
    if RAGGED:
        new = tl.where(running(lengths, starts, row, row < rows, step)[:, None], new, d)
    tl.store(state + place, new, mask=here)


@triton.jit
def propose(
    gates, weight, state, reset, dy, lengths, starts, projected, shift, ih_answer, ih_scale, hh_answer, hh_scale, rows,
    units, step, slope, floor, GIVEN: tl.constexpr, FORGETTING: tl.constexpr, RAGGED: tl.constexpr, ROWS: tl.constexpr,
    UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """h's tangent as g moves it too, which dy (B, .) gets."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit = (tl.program_id(1) * UNITS + tl.arange(0, UNITS)).to(tl.int64)
    live, wide = (row < rows)[:, None], (unit < units)[None, :]
    total = chain(reset, weight, row, unit + 2 * units, live, wide, units, units, units, 1, ROWS, UNITS, DEPTH)
    here = live & wide
    at, place = row[:, None] * 6 * units + unit[None, :], row[:, None] * units + unit[None, :]
    da_g = moved(total, projected, shift, ih_answer, ih_scale, hh_answer, hh_scale, at + 2 * units, here, GIVEN)
    s = tl.load(gates + at, mask=here, other=0.5)
    g = tl.load(gates + at + 2 * units, mask=here, other=0.0)
    d = tl.load(state + place, mask=here, other=0.0)
    if FORGETTING:
        z = forget_integer(s, slope, floor, 1024).to(tl.float32) * 0.0009765625
    else:
        z = slope * s + floor
    new = d + (1.0 - z) * (1.0 - g * g) * da_g
    if RAGGED:
        new = tl.where(running(lengths, starts, row, row < rows, step)[:, None], new, d)
    tl.store(state + place, new, mask=here)
    tl.store(dy + row[:, None] * 2 * units + unit[None, :], new, mask=here)
