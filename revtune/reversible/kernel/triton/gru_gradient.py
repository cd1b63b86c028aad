"""The gradient of RevGRU's half step, as csrc/gru.h and csrc/backward.h: from its direction to gates, and on to h'.

`update` turns the gradient of h after the step into those of g and z (before their functions) and of h before it,
`reset` that of r * h' into those of r and h', `read` adds what the half has read to the other half's direction.

Shapes: B rows, N units. Gates (B, 6N) are overwritten with the gradients of the projection.
"""

import triton
import triton.language as tl

from revtune.reversible.kernel.triton.arithmetic import forget_integer
from revtune.reversible.kernel.triton.product import read_part
from revtune.reversible.kernel.triton.responses import through
from revtune.reversible.kernel.triton.rows import beginning, found, running


@triton.jit
def update(
    gates, direction, before, lengths, starts, resets, anew, units, before_stride, step, slope, floor,
    FORGETTING: tl.constexpr, RAGGED: tl.constexpr, ANEW: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """d(g), d(z) and d(h before) of the rows that run, from `direction` (B, N); zeros as gates of the others."""
    row, unit = tl.program_id(0).to(tl.int64), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    here = unit < units
    d = tl.load(direction + row * units + unit, mask=here, other=0.0)
    place = gates + row * 6 * units + unit
    s = tl.load(place, mask=here, other=0.5)
    g = tl.load(place + 2 * units, mask=here, other=0.0)
    begins = beginning(resets, row, True) if ANEW else here
    h = found(before, anew, begins, row * before_stride + unit, row * units + unit, here, ANEW)
    if FORGETTING:
        z = forget_integer(s, slope, floor, 1024).to(tl.float32) * 0.0009765625
        dz = d * (h - g)
        back = d * z
    else:
        z = slope * s + floor
        dz = -d * g
        back = d
    dz = dz * slope * s * (1.0 - s)
    dg = d * (1.0 - z) * (1.0 - g * g)
    if RAGGED:
        runs = running(lengths, starts, row, True, step)
        dz = tl.where(runs, dz, 0.0)
        dg = tl.where(runs, dg, 0.0)
        back = tl.where(runs, back, d)
        r = tl.load(place + units, mask=here, other=0.0)
        tl.store(place + units, tl.where(runs, r, 0.0), mask=here)
    tl.store(place, dz, mask=here)
    tl.store(place + 2 * units, dg, mask=here)
    tl.store(direction + row * units + unit, back, mask=here)


@triton.jit
def reset(
    gates, weight, response, scale, source, mask, resets, anew, into, rows, units, source_stride,
    RESPONSE: tl.constexpr, MASKED: tl.constexpr, ANEW: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """d(r) in the place of r, and what comes to h' through r * h' into `into` (B, N)."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit = (tl.program_id(1) * UNITS + tl.arange(0, UNITS)).to(tl.int64)
    live, wide = (row < rows)[:, None], (unit < units)[None, :]
    first = 2 * units * units  # of g's rows
    drh = through(
        gates + 2 * units, weight + first, response + first, scale + 2 * units, row, unit, live, wide, units, 6 * units,
        units, RESPONSE, ROWS, UNITS, DEPTH,
    )  # fmt: skip
    here = live & wide
    place = gates + row[:, None] * 6 * units + (unit + units)[None, :]
    r = tl.load(place, mask=here, other=0.0)
    begins = beginning(resets, row, row < rows)[:, None] if ANEW else live
    read = read_part(source, anew, begins, mask, row, row, unit, here, source_stride, units, ANEW, MASKED)
    tl.store(into + row[:, None] * units + unit[None, :], drh * r, mask=here)
    tl.store(place, drh * read * r * (1.0 - r), mask=here)


@triton.jit
def read(
    gates, weight, response, scale, through_reset, mask, other, rows, units,
    RESPONSE: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Add to the other half's direction (B, N) what comes through r * h' and through z and r."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit = (tl.program_id(1) * UNITS + tl.arange(0, UNITS)).to(tl.int64)
    live, wide = (row < rows)[:, None], (unit < units)[None, :]
    more = through(
        gates, weight, response, scale, row, unit, live, wide, 2 * units, 6 * units, units,
        RESPONSE, ROWS, UNITS, DEPTH,
    )  # fmt: skip
    here = live & wide
    place = row[:, None] * units + unit[None, :]
    first = tl.load(through_reset + place, mask=here, other=0.0)
    if MASKED:
        factor = tl.load(mask + place, mask=here, other=0.0)
        first *= factor
        more *= factor
    tl.store(other + place, tl.load(other + place, mask=here, other=0.0) + first + more, mask=here)
