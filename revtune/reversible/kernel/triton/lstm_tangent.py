"""The tangent of RevLSTM's half step, as csrc/lstm.h and csrc/moving.h, where t = tanh(c) after the step, e the share:

    c' <- f c' + c f' + g i' + i g'    h' <- p h' + (h - e o t) p' + (1 - e p) (t o' + o (1 - t^2) c')

`read` gives the tangents of pre-activations, `update` moves c and h by them.

Shapes: B rows, N units. Gates (B, 10N) are known.
"""

import triton
import triton.language as tl

from revtune.reversible.kernel.triton.arithmetic import forget_integer, tanh
from revtune.reversible.kernel.triton.lstm import TOP, taken
from revtune.reversible.kernel.triton.product import read_chain
from revtune.reversible.kernel.triton.rows import beginning, found, running
from revtune.reversible.kernel.triton.tangents import moved


@triton.jit
def read(
    weight, other, into, mask, projected, shift, ih_answer, ih_scale, hh_answer, hh_scale, rows, units,
    GIVEN: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Tangents of a half's pre-activations (B, 5N), from `other`, that of h' (B, N)."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (tl.program_id(1) * UNITS + tl.arange(0, UNITS)).to(tl.int64)
    live, wide = (row < rows)[:, None], (column < 5 * units)[None, :]
    total = read_chain(
        other, other, live, mask, weight, row, row, column, live, wide, units, units,
        False, MASKED, ROWS, UNITS, DEPTH,
    )  # fmt: skip
    at, here = row[:, None] * 10 * units + column[None, :], live & wide
    total = moved(total, projected, shift, ih_answer, ih_scale, hh_answer, hh_scale, at, here, GIVEN)
    tl.store(into + row[:, None] * 5 * units + column[None, :], total, mask=here)


@triton.jit
def update(
    gates, da, d_hidden, d_cell, dy, h_before, c_before, c_after, lengths, starts, resets, anew_h, anew_c, units,
    before_stride, c_stride, step, slope, floor, share, FORGETTING: tl.constexpr, RAGGED: tl.constexpr,
    ANEW: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Tangents of h and c (B, N) one step on, of the rows that run; dy (B, .) gets that of h."""
    row, unit = tl.program_id(0).to(tl.int64), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    here = unit < units
    gate, by, place = gates + row * 10 * units + unit, da + row * 5 * units + unit, row * units + unit
    f = tl.load(gate, mask=here, other=0.5)
    p = tl.load(gate + units, mask=here, other=0.5)
    i = tl.load(gate + 2 * units, mask=here, other=0.0)
    o = tl.load(gate + 3 * units, mask=here, other=0.0)
    g = tl.load(gate + 4 * units, mask=here, other=0.0)
    da_f, da_p = tl.load(by, mask=here, other=0.0), tl.load(by + units, mask=here, other=0.0)
    da_i, da_o = tl.load(by + 2 * units, mask=here, other=0.0), tl.load(by + 3 * units, mask=here, other=0.0)
    da_g = tl.load(by + 4 * units, mask=here, other=0.0)
    tanh_c = tanh(tl.load(c_after + row * c_stride + unit, mask=here, other=0.0))
    d, dc = tl.load(d_hidden + place, mask=here, other=0.0), tl.load(d_cell + place, mask=here, other=0.0)
    zi_f, zi_p = forget_integer(f, slope, floor, TOP), forget_integer(p, slope, floor, TOP)
    o_taken = taken(o, p, zi_p, slope, floor, share, FORGETTING)
    if FORGETTING:
        begins = beginning(resets, row, True) if ANEW else here
        h = found(h_before, anew_h, begins, row * before_stride + unit, place, here, ANEW)
        c = found(c_before, anew_c, begins, row * c_stride + unit, place, here, ANEW)
        kept_h, dp = d * (zi_p.to(tl.float32) * 0.0009765625), h - share * o * tanh_c
        kept_c = dc * (zi_f.to(tl.float32) * 0.0009765625) + c * slope * f * (1.0 - f) * da_f
    else:
        kept_h, dp = d, 0.0 - share * o * tanh_c
        kept_c = dc
    new_c = kept_c + g * i * (1.0 - i) * da_i + i * (1.0 - g * g) * da_g
    by_output = o_taken * (tanh_c * (1.0 - o) * da_o + (1.0 - tanh_c * tanh_c) * new_c)
    new_h = kept_h + dp * slope * p * (1.0 - p) * da_p + by_output
    if RAGGED:
        runs = running(lengths, starts, row, True, step)
        new_h, new_c = tl.where(runs, new_h, d), tl.where(runs, new_c, dc)
    tl.store(d_hidden + place, new_h, mask=here)
    tl.store(d_cell + place, new_c, mask=here)
    tl.store(dy + row * 2 * units + unit, new_h, mask=here)
