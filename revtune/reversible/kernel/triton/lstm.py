"""RevLSTM's half step: f, p, i, o = sigmoid(x + W h'), g = tanh(x + W h'), as csrc/lstm.h, and its inverse:

    c <- f * c + i * g        h <- p * h + (1 - p) * o * tanh(c), or without (1 - p) at a share of 0

`evaluate` gives the gates, `turn` changes c and h, forward or back; `recall_cells` rewinds c through a whole chunk.

Shapes: M positions, B rows, N units of a half. Gates of a position are [f p i o g] of half 1, then of half 2.
"""

import triton
import triton.language as tl

from revtune.reversible.kernel.triton.arithmetic import forget_integer, from_count, sigmoid, tanh, to_count
from revtune.reversible.kernel.triton.buffer import depth_noted, forget, is_update, noted, restore
from revtune.reversible.kernel.triton.product import read_chain
from revtune.reversible.kernel.triton.resets import regained
from revtune.reversible.kernel.triton.responses import answered
from revtune.reversible.kernel.triton.rows import beginning, running

TOP = tl.constexpr(1023)
"""The largest forget integer, which bounds c by 1025."""


@triton.jit
def evaluate(
    gates, source, weight, response, scale, answers, mask, resets, anew, positions, rows, units, source_stride,
    RESPONSE: tl.constexpr, MASKED: tl.constexpr, ANEW: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """Gates of one half's positions, (M, 10N), which hold the projected input; source is h' (M, N)."""
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    position, row = number.to(tl.int64), (number % rows).to(tl.int64)
    column = (tl.program_id(1) * UNITS + tl.arange(0, UNITS)).to(tl.int64)
    live, wide = (position < positions)[:, None], (column < 5 * units)[None, :]
    begins = beginning(resets, position, position < positions)[:, None] if ANEW else live
    total = read_chain(
        source, anew, begins, mask, weight, position, row, column, live, wide, source_stride, units,
        ANEW, MASKED, ROWS, UNITS, DEPTH,
    )  # fmt: skip
    at, here = position[:, None] * 10 * units + column[None, :], live & wide
    if RESPONSE:
        more = read_chain(
            source, anew, begins, mask, response, position, row, column, live, wide, source_stride, units,
            ANEW, MASKED, ROWS, UNITS, DEPTH,
        )  # fmt: skip
        own = row[:, None] * 10 * units + column[None, :]
        total = answered(total, more, scale, answers, own, at, here, RESPONSE)
    total = tl.load(gates + at, mask=here, other=0.0) + total
    tl.store(gates + at, tl.where((column < 4 * units)[None, :], sigmoid(total), tanh(total)), mask=here)


@triton.jit
def taken(o, p, zi, slope, floor, share, FORGETTING: tl.constexpr):
    """The part of o that h takes up, for p as it is used."""
    if FORGETTING:
        used = zi.to(tl.float32)
    else:
        used = 1024.0 * (slope * p + floor)
    return (1.0 - share * (used * 0.0009765625)) * o


@triton.jit
def turn(
    gates, cells, counts, heads_c, heads_h, words, base, depth, y, c, flags, lengths, starts, slices, rows, units,
    begin, end, width, capacity, step, slope, floor, share, FORGETTING: tl.constexpr, KEEP: tl.constexpr,
    BACK: tl.constexpr, RAGGED: tl.constexpr, RECORDED: tl.constexpr, CELL: tl.constexpr, HIDDEN: tl.constexpr,
    SLICED: tl.constexpr, TURNS: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """c and h of one half one step on, or with BACK one step back; y, and c if RECORDED, (B, .) get them as floats.

    As `gru.turn`; KEEP 2 keeps the words of c alone, as outputs tell h. Where some units of h are SLICED, those of c
    and of h take turns at their heads in other places: then CELL goes with c alone, HIDDEN with h.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (tl.program_id(1) * HEADS + tl.arange(0, HEADS)).to(tl.int64)
    live, inside = (row < rows)[:, None], (column < width)[None, :]
    runs = live & running(lengths, starts, row, row < rows, step)[:, None] if RAGGED else live
    stack = row[:, None] * tl.num_programs(1) + tl.program_id(1)
    head = row[:, None] * width + column[None, :]
    s_c = tl.load(heads_c + head, mask=live & inside, other=16384)
    s_h = tl.load(heads_h + head, mask=live & inside, other=16384)
    at = tl.load(depth + stack, mask=live, other=0)
    first = words + tl.load(base + stack, mask=live, other=0)
    wrong = tl.zeros((ROWS, 1), tl.int32)
    for n in range(TURNS):
        unit = begin + ((TURNS - 1 - n) if BACK else n) * width + column
        here = live & inside & (unit < end)[None, :]
        moving = here & runs
        gate = gates + row[:, None] * 10 * units + unit[None, :]
        place = row[:, None] * units + unit[None, :]
        out = row[:, None] * 2 * units + unit[None, :]
        old_c = tl.load(cells + place, mask=here, other=0)
        new_c = old_c
        if CELL:
            f = tl.load(gate, mask=here, other=0.5)
            u = tl.load(gate + 2 * units, mask=here, other=0.0) * tl.load(gate + 4 * units, mask=here, other=0.0)
            zi_f, fine = forget_integer(f, slope, floor, TOP), is_update(u, f)
            update = to_count(tl.where(fine, u, 0.0))
            if not BACK:
                if FORGETTING:
                    new_c, s_c, at = forget(old_c, s_c, zi_f, moving, first, at, capacity, KEEP == 0, KEEP >= 2)
                    wrong |= depth_noted(at, capacity, BACK)
                new_c += update
                wrong |= noted(new_c, fine, moving)
        if HIDDEN:
            p = tl.load(gate + units, mask=here, other=0.5)
            o = tl.load(gate + 3 * units, mask=here, other=0.0)
            old_h, zi_p = tl.load(counts + place, mask=here, other=0), forget_integer(p, slope, floor, TOP)
            u = taken(o, p, zi_p, slope, floor, share, FORGETTING) * tanh(from_count(new_c))
            fine = is_update(u, p)
            change = to_count(tl.where(fine, u, 0.0))
            if BACK:
                new_h = old_h - change
                if SLICED:
                    new_h = to_count(tl.load(slices + row[:, None] * end + unit[None, :], mask=here, other=0.0))
                elif FORGETTING:
                    new_h, s_h, at = restore(new_h, s_h, zi_p, moving, first, at)
                    wrong |= depth_noted(at, capacity, BACK)
            else:
                new_h = old_h
                if FORGETTING:
                    new_h, s_h, at = forget(
                        old_h, s_h, zi_p, moving, first, at, capacity, KEEP == 0 or SLICED, KEEP == 3
                    )
                    wrong |= depth_noted(at, capacity, BACK)
                new_h += change
                if SLICED:
                    new_h = to_count(from_count(new_h))
                wrong |= noted(new_h, fine, moving)
            new_h = tl.where(moving, new_h, old_h)
            tl.store(counts + place, new_h, mask=here)
            tl.store(y + out, from_count(new_h), mask=here)
        if CELL:
            if BACK:
                new_c = old_c - update
                if FORGETTING:
                    new_c, s_c, at = restore(new_c, s_c, zi_f, moving, first, at)
                    wrong |= depth_noted(at, capacity, BACK)
            new_c = tl.where(moving, new_c, old_c)
            tl.store(cells + place, new_c, mask=here)
            if RECORDED:
                tl.store(c + out, from_count(new_c), mask=here)
    tl.store(heads_c + head, s_c, mask=live & inside)
    tl.store(heads_h + head, s_h, mask=live & inside)
    tl.store(depth + stack, at, mask=live)
    tl.store(flags + stack, tl.load(flags + stack, mask=live, other=0) | wrong, mask=live)


@triton.jit
def recall_cells(
    gates, cells, heads, words, base, depth, c, flags, lengths, resets, fresh, rows, units, width, steps, slope,
    floor, FORGETTING: tl.constexpr, RAGGED: tl.constexpr, ANEW: tl.constexpr, TURNS: tl.constexpr,
    ROWS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """c through a chunk of known gates, from its last step back; c (K, B, 2N) gets it as floats.

    cells are (2, B, N). No product reads c, so that a program has its rows and heads for all steps.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (tl.program_id(1) * HEADS + tl.arange(0, HEADS)).to(tl.int64)
    live, inside = (row < rows)[:, None], (column < width)[None, :]
    stack = row[:, None] * tl.num_programs(1) + tl.program_id(1)
    head = row[:, None] * width + column[None, :]
    s = tl.load(heads + head, mask=live & inside, other=16384)
    at = tl.load(depth + stack, mask=live, other=0)
    first = words + tl.load(base + stack, mask=live, other=0)
    length = tl.load(lengths + row, mask=row < rows, other=0) if RAGGED else row
    wrong = tl.zeros((ROWS, 1), tl.int32)
    for back in range(steps):
        step = steps - 1 - back
        position = row + step.to(tl.int64) * rows
        runs = live
        if RAGGED:
            runs = live & (length > step)[:, None]
        for n in range(2 * TURNS):
            half, unit = 1 - n // TURNS, (TURNS - 1 - n % TURNS) * width + column
            here = live & inside & (unit < units)[None, :]
            gate = gates + (position[:, None] * 10 + half * 5) * units + unit[None, :]
            i, g = tl.load(gate + 2 * units, mask=here, other=0.0), tl.load(gate + 4 * units, mask=here, other=0.0)
            place = cells + (row[:, None] + half * rows) * units + unit[None, :]
            old = tl.load(place, mask=here, other=0)
            tl.store(c + (position[:, None] * 2 + half) * units + unit[None, :], from_count(old), mask=here)
            new = old - to_count(i * g)
            if FORGETTING:
                zi = forget_integer(tl.load(gate, mask=here, other=0.5), slope, floor, TOP)
                new, s, at = restore(new, s, zi, here & runs, first, at)
                wrong |= depth_noted(at, 0, True)
            new = tl.where(here & runs, new, old)
            tl.store(place, new, mask=here)
        if ANEW:
            tl.debug_barrier()  # other threads may read what one has stored
            begins = live & beginning(resets, position, row < rows)[:, None]
            s, at, lost = regained(
                cells, fresh, s, first, at, begins, row, column, inside, rows, units, width, c, 0, False, TURNS, HEADS
            )  # fmt: skip
            wrong |= lost
            tl.debug_barrier()
    tl.store(heads + head, s, mask=live & inside)
    tl.store(depth + stack, at, mask=live)
    tl.store(flags + stack, tl.load(flags + stack, mask=live, other=0) | wrong, mask=live)
