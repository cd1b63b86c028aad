"""RevGRU's half step: z, r = sigmoid(x + W h'), g = tanh(x + U (r * h')), h <- z * h + (1 - z) * g, as csrc/gru.h.

`evaluate` gives z, r and r * h', `turn` gives g and changes h, forward or back. What is between them is a product that
reads all of r * h', so that they are two kernels. Both directions, and recall from known outputs, evaluate gates here.

Shapes: M positions, B rows, N units of a half. Gates of a position are [z r g] of half 1, then of half 2.
"""

import triton
import triton.language as tl

from revtune.reversible.kernel.triton.arithmetic import (
    COUNT_LIMIT,
    HEAD_START,
    STATE_LIMIT,
    forget_integer,
    from_count,
    multiply_only,
    pop,
    push,
    sigmoid,
    tanh,
    to_count,
)


@triton.jit
def evaluate(
    gates, source, rh, weight, mask, positions, rows, units, source_stride, rh_stride,
    MASKED: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """z, r and r * h' of one half's positions; gates (M, 6N) hold the projected input, source is h' (M, N)."""
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    position, row = number.to(tl.int64), (number % rows).to(tl.int64)  # a division of 32 bits is the cheap one
    unit = (tl.program_id(1) * UNITS + tl.arange(0, UNITS)).to(tl.int64)
    lane = tl.arange(0, DEPTH).to(tl.int64)
    live, wide = (position < positions)[:, None], (unit < units)[None, :]
    sum_z = tl.zeros((ROWS, UNITS), tl.float32)
    sum_r = tl.zeros((ROWS, UNITS), tl.float32)
    for k in range(0, units, DEPTH):
        inside = (k + lane) < units
        read = tl.load(
            source + position[:, None] * source_stride + (k + lane)[None, :], mask=live & inside[None, :], other=0.0
        )
        if MASKED:
            at = mask + row[:, None] * units + (k + lane)[None, :]
            read *= tl.load(at, mask=live & inside[None, :], other=0.0)
        known = wide & inside[:, None]
        at = weight + unit[None, :] * units + (k + lane)[:, None]
        sum_z = tl.dot(read, tl.load(at, mask=known, other=0.0), sum_z, input_precision="ieee")
        at = weight + (unit + units)[None, :] * units + (k + lane)[:, None]
        sum_r = tl.dot(read, tl.load(at, mask=known, other=0.0), sum_r, input_precision="ieee")
    here = live & wide
    place = gates + position[:, None] * 6 * units + unit[None, :]
    r = sigmoid(tl.load(place + units, mask=here, other=0.0) + sum_r)
    tl.store(place, sigmoid(tl.load(place, mask=here, other=0.0) + sum_z), mask=here)
    tl.store(place + units, r, mask=here)
    read = tl.load(source + position[:, None] * source_stride + unit[None, :], mask=here, other=0.0)
    if MASKED:
        read *= tl.load(mask + row[:, None] * units + unit[None, :], mask=here, other=0.0)
    tl.store(rh + position[:, None] * rh_stride + unit[None, :], r * read, mask=here)


@triton.jit
def candidate(
    gates, rh, weight, position, unit, here, live, wide, units, rh_stride,
    ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """g of some units of one half's positions, which it stores."""
    lane = tl.arange(0, DEPTH).to(tl.int64)
    total = tl.zeros((ROWS, UNITS), tl.float32)
    for k in range(0, units, DEPTH):
        inside = (k + lane) < units
        read = tl.load(rh + position[:, None] * rh_stride + (k + lane)[None, :], mask=live & inside[None, :], other=0.0)
        at = weight + (unit + 2 * units)[None, :] * units + (k + lane)[:, None]
        columns = tl.load(at, mask=wide & inside[:, None], other=0.0)
        total = tl.dot(read, columns, total, input_precision="ieee")
    place = gates + position[:, None] * 6 * units + (unit + 2 * units)[None, :]
    g = tanh(tl.load(place, mask=here, other=0.0) + total)
    tl.store(place, g, mask=here)
    return g


@triton.jit
def propose(
    gates, rh, weight, positions, units, rh_stride, ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr
):
    """g of one half's positions, whose outputs are known."""
    position = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    unit = (tl.program_id(1) * UNITS + tl.arange(0, UNITS)).to(tl.int64)
    live, wide = (position < positions)[:, None], (unit < units)[None, :]
    candidate(gates, rh, weight, position, unit, live & wide, live, wide, units, rh_stride, ROWS, UNITS, DEPTH)


@triton.jit
def turn(
    gates, rh, weight, counts, heads, words, base, depth, y, flags, lengths, rows, units, width, capacity, step,
    rh_stride, slope, floor, FORGETTING: tl.constexpr, KEEP: tl.constexpr, BACK: tl.constexpr, RAGGED: tl.constexpr,
    TURNS: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """g of one half at a step, and h one step on, or with BACK one step back; y (B, .) gets it as floats.

    A program has some rows and HEADS heads, with all units that take turns at them, and a stack of words of its own:
    `depth` words from `base` on. A word's place is its rank among those that are spilled at once, so that no order of
    programs matters. KEEP is `Keep`: 0 rounds, 1 drops words, 3 keeps them. `flags` gets 1 for a state out of range or
    not finite, 2 where the stack runs empty, 4 where it overflows `capacity`.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (tl.program_id(1) * HEADS + tl.arange(0, HEADS)).to(tl.int64)
    live = (row < rows)[:, None]
    lane = live & (column < width)[None, :]
    runs = live
    if RAGGED:
        runs = live & (tl.load(lengths + row, mask=row < rows, other=0) > step)[:, None]
    stack = row[:, None] * tl.num_programs(1) + tl.program_id(1)
    head = heads + row[:, None] * width + column[None, :]
    if FORGETTING and KEEP > 0:
        s = tl.load(head, mask=lane, other=HEAD_START)
    if FORGETTING and KEEP == 3:
        at = tl.load(depth + stack, mask=live, other=0)
        first = words + tl.load(base + stack, mask=live, other=0)
    wrong = tl.zeros((ROWS, 1), tl.int32)
    for i in range(TURNS):
        unit = ((TURNS - 1 - i) if BACK else i) * width + column
        wide = (column < width)[None, :] & (unit < units)[None, :]
        here = live & wide
        g = candidate(gates, rh, weight, row, unit, here, live, wide, units, rh_stride, ROWS, HEADS, DEPTH)
        z = tl.load(gates + row[:, None] * 6 * units + unit[None, :], mask=here, other=0.5)
        place = counts + row[:, None] * units + unit[None, :]
        h = tl.load(place, mask=here, other=0)
        moving = here & runs
        zi = forget_integer(z, slope, floor, 1024)
        if FORGETTING:
            u = (1.0 - zi.to(tl.float32) * 0.0009765625) * g
        else:
            u = (1.0 - (slope * z + floor)) * g
        finite = (tl.abs(u) < STATE_LIMIT) & (z == z)
        update = to_count(tl.where(finite, u, 0.0))
        if BACK:
            new = h - update
            if FORGETTING:
                new, popped = pop(new, s, zi)
                low = moving & (popped < HEAD_START)
                ones = low.to(tl.int32)
                at -= tl.sum(ones, 1)[:, None]
                wrong |= tl.where(at < 0, 2, 0)
                rank = at + tl.cumsum(ones, 1) - ones
                word = tl.load(first + rank, mask=low & (rank >= 0), other=0).to(tl.int32) & 65535
                s = tl.where(moving, tl.where(low, (popped << 16) + word, popped), s)
        else:
            if FORGETTING and KEEP == 0:
                new = multiply_only(h, zi)
            elif FORGETTING:
                full = moving & (s >= (zi << 20))
                if KEEP == 3:
                    ones = full.to(tl.int32)
                    rank = at + tl.cumsum(ones, 1) - ones
                    tl.store(first + rank, s.to(tl.int16), mask=full & (rank < capacity))
                    at += tl.sum(ones, 1)[:, None]
                    wrong |= tl.where(at > capacity, 4, 0)
                new, pushed = push(h, tl.where(full, s >> 16, s), zi)
                s = tl.where(moving, pushed, s)
            else:
                new = h
            new += update
            far = (new >= COUNT_LIMIT) | (new <= -COUNT_LIMIT) | (finite == 0)
            wrong |= tl.max((moving & far).to(tl.int32), 1)[:, None]
        new = tl.where(moving, new, h)
        tl.store(place, new, mask=here)
        tl.store(y + row[:, None] * 2 * units + unit[None, :], from_count(new), mask=here)
    if FORGETTING and KEEP > 0:
        tl.store(head, s, mask=lane)
    if FORGETTING and KEEP == 3:
        tl.store(depth + stack, at, mask=live)
    tl.store(flags + stack, tl.load(flags + stack, mask=live, other=0) | wrong, mask=live)
