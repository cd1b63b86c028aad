"""The gradient of RevLSTM's half step, as csrc/lstm.h: from its direction to gates, and on to h'.

Shapes: B rows, N units. Gates (B, 10N) are overwritten with the gradients of the projection.
"""

import triton
import triton.language as tl

from revtune.reversible.kernel.triton.arithmetic import forget_integer, tanh
from revtune.reversible.kernel.triton.lstm import TOP, taken
from revtune.reversible.kernel.triton.responses import through
from revtune.reversible.kernel.triton.rows import beginning, found, running


@triton.jit
def update(
    gates, d_hidden, d_cell, h_before, c_before, c_after, lengths, starts, resets, anew_h, anew_c, units,
    before_stride, c_stride, step, slope, floor, share, FORGETTING: tl.constexpr, RAGGED: tl.constexpr,
    ANEW: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Gradients of gates, and of h and c (B, N) before the step, of the rows that run; zeros as gates of the others."""
    row, unit = tl.program_id(0).to(tl.int64), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    here = unit < units
    gate, place = gates + row * 10 * units + unit, row * units + unit
    f = tl.load(gate, mask=here, other=0.5)
    p = tl.load(gate + units, mask=here, other=0.5)
    i = tl.load(gate + 2 * units, mask=here, other=0.0)
    o = tl.load(gate + 3 * units, mask=here, other=0.0)
    g = tl.load(gate + 4 * units, mask=here, other=0.0)
    tanh_c = tanh(tl.load(c_after + row * c_stride + unit, mask=here, other=0.0))
    d, dc = tl.load(d_hidden + place, mask=here, other=0.0), tl.load(d_cell + place, mask=here, other=0.0)
    zi_f, zi_p = forget_integer(f, slope, floor, TOP), forget_integer(p, slope, floor, TOP)
    o_taken = taken(o, p, zi_p, slope, floor, share, FORGETTING)
    e = dc + d * o_taken * (1.0 - tanh_c * tanh_c)
    if FORGETTING:
        begins = beginning(resets, row, True) if ANEW else here
        h = found(h_before, anew_h, begins, row * before_stride + unit, place, here, ANEW)
        c = found(c_before, anew_c, begins, row * c_stride + unit, place, here, ANEW)
        dp = h - share * o * tanh_c
        df = e * c * slope * f * (1.0 - f)
        back_h, back_c = d * (zi_p.to(tl.float32) * 0.0009765625), e * (zi_f.to(tl.float32) * 0.0009765625)
    else:
        dp = 0.0 - share * o * tanh_c
        df = tl.zeros((SIZE,), tl.float32)
        back_h, back_c = d, e
    dp = d * dp * slope * p * (1.0 - p)
    di = e * g * i * (1.0 - i)
    do = d * tanh_c * o_taken * (1.0 - o)
    dg = e * i * (1.0 - g * g)
    if RAGGED:
        runs = running(lengths, starts, row, True, step)
        df, dp, di = tl.where(runs, df, 0.0), tl.where(runs, dp, 0.0), tl.where(runs, di, 0.0)
        do, dg = tl.where(runs, do, 0.0), tl.where(runs, dg, 0.0)
        back_h, back_c = tl.where(runs, back_h, d), tl.where(runs, back_c, dc)
    tl.store(gate, df, mask=here)
    tl.store(gate + units, dp, mask=here)
    tl.store(gate + 2 * units, di, mask=here)
    tl.store(gate + 3 * units, do, mask=here)
    tl.store(gate + 4 * units, dg, mask=here)
    tl.store(d_hidden + place, back_h, mask=here)
    tl.store(d_cell + place, back_c, mask=here)


@triton.jit
def read(
    gates, weight, response, scale, mask, other, rows, units,
    RESPONSE: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Add to the other half's direction (B, N) what comes through the gates."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit = (tl.program_id(1) * UNITS + tl.arange(0, UNITS)).to(tl.int64)
    live, wide = (row < rows)[:, None], (unit < units)[None, :]
    more = through(
        gates, weight, response, scale, row, unit, live, wide, 5 * units, 10 * units, units,
        RESPONSE, ROWS, UNITS, DEPTH,
    )  # fmt: skip
    place = row[:, None] * units + unit[None, :]
    if MASKED:
        more *= tl.load(mask + place, mask=live & wide, other=0.0)
    tl.store(other + place, tl.load(other + place, mask=live & wide, other=0.0) + more, mask=live & wide)
