"""RevGRU's half step: z, r = sigmoid(x + W h'), g = tanh(x + U (r * h')), h <- z * h + (1 - z) * g, as csrc/gru.h.

`evaluate` gives z, r and r * h', `turn` gives g and changes h, forward or back. What is between them is a product that
reads all of r * h', so that they are two kernels. Both directions, and recall from known outputs, evaluate gates here.

Shapes: M positions, B rows, N units of a half. Gates of a position are [z r g] of half 1, then of half 2.
"""

import triton
import triton.language as tl

from revtune.reversible.kernel.triton.arithmetic import forget_integer, from_count, sigmoid, tanh, to_count
from revtune.reversible.kernel.triton.buffer import depth_noted, forget, is_update, noted, restore
from revtune.reversible.kernel.triton.product import chain, continued, read_part
from revtune.reversible.kernel.triton.responses import answered
from revtune.reversible.kernel.triton.rows import beginning, running


@triton.jit
def read_pair(
    source, anew, begins, mask, weight, position, row, unit, live, wide, stride, units,
    ANEW: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """`read_chain` for z and for r, which read the same: h' is loaded once."""
    lane = tl.arange(0, DEPTH).to(tl.int64)
    sum_z = tl.zeros((ROWS, UNITS), tl.float32)
    sum_r = tl.zeros((ROWS, UNITS), tl.float32)
    for k in range(0, units, DEPTH):
        inside = (k + lane < units)[None, :]
        part = live & inside
        read = read_part(source, anew, begins, mask, position, row, k + lane, part, stride, units, ANEW, MASKED)
        sum_z = continued(sum_z, read, weight, unit, k + lane, inside, wide, units, 1)
        sum_r = continued(sum_r, read, weight, unit + units, k + lane, inside, wide, units, 1)
    return sum_z, sum_r


@triton.jit
def evaluate(
    gates, source, rh, weight, response, scale, answers, mask, resets, anew, positions, rows, units, source_stride,
    rh_stride, RESPONSE: tl.constexpr, MASKED: tl.constexpr, ANEW: tl.constexpr, ROWS: tl.constexpr,
    UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """z, r and r * h' of one half's positions; gates (M, 6N) hold the projected input, source is h' (M, N)."""
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    position, row = number.to(tl.int64), (number % rows).to(tl.int64)  # a division of 32 bits is the cheap one
    unit = (tl.program_id(1) * UNITS + tl.arange(0, UNITS)).to(tl.int64)
    live, wide = (position < positions)[:, None], (unit < units)[None, :]
    begins = beginning(resets, position, position < positions)[:, None] if ANEW else live
    sum_z, sum_r = read_pair(
        source, anew, begins, mask, weight, position, row, unit, live, wide, source_stride, units,
        ANEW, MASKED, ROWS, UNITS, DEPTH,
    )  # fmt: skip
    here = live & wide
    at = position[:, None] * 6 * units + unit[None, :]
    if RESPONSE:
        more_z, more_r = read_pair(
            source, anew, begins, mask, response, position, row, unit, live, wide, source_stride, units,
            ANEW, MASKED, ROWS, UNITS, DEPTH,
        )  # fmt: skip
        own = row[:, None] * 6 * units + unit[None, :]
        sum_z = answered(sum_z, more_z, scale, answers, own, at, here, RESPONSE)
        sum_r = answered(sum_r, more_r, scale, answers, own + units, at + units, here, RESPONSE)
    r = sigmoid(tl.load(gates + at + units, mask=here, other=0.0) + sum_r)
    tl.store(gates + at, sigmoid(tl.load(gates + at, mask=here, other=0.0) + sum_z), mask=here)
    tl.store(gates + at + units, r, mask=here)
    read = read_part(source, anew, begins, mask, position, row, unit, here, source_stride, units, ANEW, MASKED)
    tl.store(rh + position[:, None] * rh_stride + unit[None, :], r * read, mask=here)


@triton.jit
def candidate(
    gates, rh, weight, response, scale, answers, position, row, unit, live, wide, units, rh_stride,
    RESPONSE: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """g of some units of one half's positions, which it stores."""
    own = unit + 2 * units
    total = chain(rh, weight, position, own, live, wide, units, rh_stride, units, 1, ROWS, UNITS, DEPTH)
    at, here = position[:, None] * 6 * units + own[None, :], live & wide
    if RESPONSE:
        more = chain(rh, response, position, own, live, wide, units, rh_stride, units, 1, ROWS, UNITS, DEPTH)
        total = answered(total, more, scale, answers, row[:, None] * 6 * units + own[None, :], at, here, RESPONSE)
    g = tanh(tl.load(gates + at, mask=here, other=0.0) + total)
    tl.store(gates + at, g, mask=here)
    return g


@triton.jit
def propose(
    gates, rh, weight, response, scale, answers, positions, rows, units, rh_stride,
    RESPONSE: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """g of one half's positions, whose outputs are known."""
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    position, row = number.to(tl.int64), (number % rows).to(tl.int64)
    unit = (tl.program_id(1) * UNITS + tl.arange(0, UNITS)).to(tl.int64)
    live, wide = (position < positions)[:, None], (unit < units)[None, :]
    candidate(
        gates, rh, weight, response, scale, answers, position, row, unit, live, wide, units, rh_stride,
        RESPONSE, ROWS, UNITS, DEPTH,
    )  # fmt: skip


@triton.jit
def turn(
    gates, rh, weight, response, scale, answers, counts, heads, words, base, depth, y, flags, lengths, starts, slices,
    rows, units, begin, end, width, capacity, step, rh_stride, slope, floor, RESPONSE: tl.constexpr,
    FORGETTING: tl.constexpr, KEEP: tl.constexpr, BACK: tl.constexpr, RAGGED: tl.constexpr, SLICED: tl.constexpr,
    TURNS: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """g of one half at a step, and h one step on, or with BACK one step back; y (B, .) gets it as floats.

    A program has some rows and HEADS heads, with all units from `begin` to `end` that take turns at them, and a stack
    of `depth` words from `base` on. KEEP is `Keep`: 0 rounds, 1 drops words, 3 keeps them. SLICED units have no buffer
    but stand on floats, which are in `slices` (B, end) as they were before the step. `flags` gets what is noted.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (tl.program_id(1) * HEADS + tl.arange(0, HEADS)).to(tl.int64)
    live, inside = (row < rows)[:, None], (column < width)[None, :]
    runs = live & running(lengths, starts, row, row < rows, step)[:, None] if RAGGED else live
    stack = row[:, None] * tl.num_programs(1) + tl.program_id(1)
    head = heads + row[:, None] * width + column[None, :]
    s = tl.load(head, mask=live & inside, other=16384)
    at = tl.load(depth + stack, mask=live, other=0)
    first = words + tl.load(base + stack, mask=live, other=0)
    wrong = tl.zeros((ROWS, 1), tl.int32)
    for i in range(TURNS):
        unit = begin + ((TURNS - 1 - i) if BACK else i) * width + column
        wide = inside & (unit < end)[None, :]
        here = live & wide
        moving = here & runs
        g = candidate(
            gates, rh, weight, response, scale, answers, row, row, unit, live, wide, units, rh_stride,
            RESPONSE, ROWS, HEADS, DEPTH,
        )  # fmt: skip
        z = tl.load(gates + row[:, None] * 6 * units + unit[None, :], mask=here, other=0.5)
        place = counts + row[:, None] * units + unit[None, :]
        h = tl.load(place, mask=here, other=0)
        zi = forget_integer(z, slope, floor, 1024)
        if FORGETTING:
            u = (1.0 - zi.to(tl.float32) * 0.0009765625) * g
        else:
            u = (1.0 - (slope * z + floor)) * g
        fine = is_update(u, z)
        update = to_count(tl.where(fine, u, 0.0))
        if BACK:
            new = h - update
            if SLICED:
                new = to_count(tl.load(slices + row[:, None] * end + unit[None, :], mask=here, other=0.0))
            elif FORGETTING:
                new, s, at = restore(new, s, zi, moving, first, at)
                wrong |= depth_noted(at, capacity, BACK)
        else:
            new = h
            if FORGETTING:
                new, s, at = forget(h, s, zi, moving, first, at, capacity, KEEP == 0 or SLICED, KEEP == 3)
                wrong |= depth_noted(at, capacity, BACK)
            new += update
            if SLICED:
                new = to_count(from_count(new))
            wrong |= noted(new, fine, moving)
        new = tl.where(moving, new, h)
        tl.store(place, new, mask=here)
        tl.store(y + row[:, None] * 2 * units + unit[None, :], from_count(new), mask=here)
    tl.store(head, s, mask=live & inside)
    tl.store(depth + stack, at, mask=live)
    tl.store(flags + stack, tl.load(flags + stack, mask=live, other=0) | wrong, mask=live)
