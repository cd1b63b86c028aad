"""Rows that begin anew: what they lose goes onto their stacks whole, and comes back from there, as in csrc/worker.h.

A count takes four words and a head two, the lowest first. A program has some rows and HEADS heads, with all units of
both halves that take turns at them, as the programs have that couple.

Shapes: S states, B rows, N units of a half.
"""

import triton
import triton.language as tl

from revtune.reversible.kernel.triton.arithmetic import HEAD_START, from_count
from revtune.reversible.kernel.triton.buffer import NOT_ANEW, depth_noted
from revtune.reversible.kernel.triton.rows import beginning

COUNT_WORDS, HEAD_WORDS = tl.constexpr(4), tl.constexpr(2)


@triton.jit
def pushed(value, words, at, here, capacity, WORDS: tl.constexpr):
    """Write whole numbers from a place of a stack on."""
    for i in tl.static_range(WORDS):
        tl.store(words + at + i, (value >> (16 * i)).to(tl.int16), mask=here & (at + i < capacity))


@triton.jit
def popped(words, at, here, WORDS: tl.constexpr):
    """Read whole numbers, int64, from a place of a stack on."""
    value = tl.zeros(here.shape, tl.int64)
    for i in tl.static_range(WORDS):
        word = tl.load(words + at + i, mask=here & (at + i >= 0), other=0).to(tl.int64)
        value |= (word & 65535) << (16 * i)
    return value


@triton.jit
def taking(turn, units, width, HEADS: tl.constexpr):
    """How many units of a half take this turn at a program's heads; they are its first ones."""
    count = tl.minimum(width, units - turn * width) - tl.program_id(1) * HEADS
    return tl.minimum(tl.maximum(count, 0), HEADS)


@triton.jit
def lose(
    counts, heads, fresh, words, base, depth, flags, resets, rows, units, width, capacity,
    STATES: tl.constexpr, KEEP: tl.constexpr, TURNS: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Begin rows anew before a step: counts (S, 2, B, N) become those of `fresh`, heads (S, B, width) new ones.

    What they were goes onto the stacks, with KEEP 3 that of all states, with 2 that of c. With 0 there are no heads.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (tl.program_id(1) * HEADS + tl.arange(0, HEADS)).to(tl.int64)
    live, inside = (row < rows)[:, None], (column < width)[None, :]
    begins = live & beginning(resets, row, row < rows)[:, None]
    stack = row[:, None] * tl.num_programs(1) + tl.program_id(1)
    at = tl.load(depth + stack, mask=live, other=0)
    first = words + tl.load(base + stack, mask=live, other=0)
    local = tl.arange(0, HEADS)[None, :]
    for group in tl.static_range(STATES):
        for n in range(2 * TURNS):
            half, turn = n // TURNS, n % TURNS
            unit = turn * width + column
            here = begins & inside & (unit < units)[None, :]
            place = ((group * 2 + half) * rows + row[:, None]) * units + unit[None, :]
            if KEEP >= 3 - group:
                count = tl.load(counts + place, mask=here, other=0)
                pushed(count, first, at + local * COUNT_WORDS, here, capacity, COUNT_WORDS)
                at += tl.where(begins, taking(turn, units, width, HEADS) * COUNT_WORDS, 0)
            tl.store(counts + place, tl.load(fresh + place, mask=here, other=0), mask=here)
        here = begins & inside
        head = heads + (group * rows + row[:, None]) * width + column[None, :]
        if KEEP >= 3 - group:
            s = tl.load(head, mask=here, other=0)
            pushed(s, first, at + local * HEAD_WORDS, here, capacity, HEAD_WORDS)
            at += tl.where(begins, taking(0, units, width, HEADS) * HEAD_WORDS, 0)
        if KEEP > 0:
            tl.store(head, tl.full((ROWS, HEADS), HEAD_START, tl.int32), mask=here)
    tl.store(depth + stack, at, mask=live)
    wrong = depth_noted(at, capacity, False)
    tl.store(flags + stack, tl.load(flags + stack, mask=live, other=0) | wrong, mask=live)


@triton.jit
def regained(
    counts, fresh, s, first, at, begins, row, column, inside, rows, units, width, into,
    GROUP: tl.constexpr, RECORDED: tl.constexpr, TURNS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Heads and depths as they were before rows began anew, of one state, and what is to be noted.

    Its counts, of (S, 2, B, N), are stored, with RECORDED as floats into (B, 2N) too.
    """
    local = tl.arange(0, HEADS)[None, :]
    here = begins & inside
    wrong = here & (s != HEAD_START)
    at -= tl.where(begins, taking(0, units, width, HEADS) * HEAD_WORDS, 0)
    s = tl.where(here, popped(first, at + local * HEAD_WORDS, here, HEAD_WORDS).to(tl.int32), s)
    for n in range(2 * TURNS):
        half, turn = 1 - n // TURNS, TURNS - 1 - n % TURNS
        unit = turn * width + column
        here = begins & inside & (unit < units)[None, :]
        place = ((GROUP * 2 + half) * rows + row[:, None]) * units + unit[None, :]
        count = tl.load(counts + place, mask=here, other=0)
        wrong |= here & (count != tl.load(fresh + place, mask=here, other=0))
        at -= tl.where(begins, taking(turn, units, width, HEADS) * COUNT_WORDS, 0)
        count = popped(first, at + local * COUNT_WORDS, here, COUNT_WORDS)
        tl.store(counts + place, count, mask=here)
        if RECORDED:
            tl.store(into + row[:, None] * 2 * units + half * units + unit[None, :], from_count(count), mask=here)
    return s, at, tl.max(wrong.to(tl.int32), 1)[:, None] * NOT_ANEW | depth_noted(at, 0, True)


@triton.jit
def regain(
    counts, heads, fresh, words, base, depth, flags, resets, y, c, rows, units, width,
    STATES: tl.constexpr, TURNS: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """The inverse of `lose` with all words kept; y (B, 2N), and c of a RevLSTM, get what rows were as floats."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (tl.program_id(1) * HEADS + tl.arange(0, HEADS)).to(tl.int64)
    live, inside = (row < rows)[:, None], (column < width)[None, :]
    begins = live & beginning(resets, row, row < rows)[:, None]
    stack = row[:, None] * tl.num_programs(1) + tl.program_id(1)
    at = tl.load(depth + stack, mask=live, other=0)
    first = words + tl.load(base + stack, mask=live, other=0)
    wrong = tl.zeros((ROWS, 1), tl.int32)
    for i in tl.static_range(STATES):  # c before h
        head = heads + ((STATES - 1 - i) * rows + row[:, None]) * width + column[None, :]
        s = tl.load(head, mask=live & inside, other=HEAD_START)
        s, at, noted = regained(
            counts, fresh, s, first, at, begins, row, column, inside, rows, units, width,
            c if STATES - 1 > i else y, STATES - 1 - i, True, TURNS, HEADS,
        )  # fmt: skip
        wrong |= noted
        tl.store(head, s, mask=live & inside)
    tl.store(depth + stack, at, mask=live)
    tl.store(flags + stack, tl.load(flags + stack, mask=live, other=0) | wrong, mask=live)


@triton.jit
def cut(
    direction, into, resets, rows, units, PARTS: tl.constexpr, ADDED: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """No gradient crosses: where rows begin anew `direction` (PARTS, B, N) is zero, with ADDED what it was is added."""
    row, unit = tl.program_id(0).to(tl.int64), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    here = (unit < units) & (tl.load(resets + row) != 0)
    for part in tl.static_range(PARTS):
        place = (part * rows + row) * units + unit
        if ADDED:
            total = tl.load(into + place, mask=here, other=0.0) + tl.load(direction + place, mask=here, other=0.0)
            tl.store(into + place, total, mask=here)
        tl.store(direction + place, tl.zeros((SIZE,), tl.float32), mask=here)
