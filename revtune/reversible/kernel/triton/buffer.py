"""The information buffer in a program: counts times forget integers and back, with a stack of words of its own.

A word's place on the stack is its rank among those that are spilled at once, so that no order of programs matters, and
both directions agree.
"""

import triton
import triton.language as tl

from revtune.reversible.kernel.triton.arithmetic import COUNT_LIMIT, HEAD_START, STATE_LIMIT, multiply_only, pop, push

OUT_OF_RANGE, RAN_EMPTY, OVERFLOWED, NOT_ANEW = tl.constexpr(1), tl.constexpr(2), tl.constexpr(4), tl.constexpr(8)
"""What a program notes; NOT_ANEW on the way back, that rows are not where they began anew."""


@triton.jit
def forget(h, s, zi, moving, words, at, capacity, ROUNDED: tl.constexpr, STORED: tl.constexpr):
    """h zi / 1024 where a row is moving: counts, heads and the depth of the stack at `words` afterwards.

    ROUNDED has no buffer; without STORED words are dropped. What is not moving comes back as it went in, but counts.
    """
    if ROUNDED:
        new = multiply_only(h, zi)
    else:
        full = moving & (s >= (zi << 20))
        if STORED:
            ones = full.to(tl.int32)
            rank = at + tl.cumsum(ones, 1) - ones
            tl.store(words + rank, s.to(tl.int16), mask=full & (rank < capacity))
            at += tl.sum(ones, 1)[:, None]
        new, pushed = push(h, tl.where(full, s >> 16, s), zi)
        s = tl.where(moving, pushed, s)
    return new, s, at


@triton.jit
def restore(h, s, zi, moving, words, at):
    """The inverse of `forget` with words stored."""
    new, popped = pop(h, s, zi)
    low = moving & (popped < HEAD_START)
    ones = low.to(tl.int32)
    at -= tl.sum(ones, 1)[:, None]
    rank = at + tl.cumsum(ones, 1) - ones
    word = tl.load(words + rank, mask=low & (rank >= 0), other=0).to(tl.int32) & 65535
    return new, tl.where(moving, tl.where(low, (popped << 16) + word, popped), s), at


@triton.jit
def is_update(u, z):
    """Whether an update is a number below 2^20, and the gate beside it a number."""
    return (tl.abs(u) < STATE_LIMIT) & (z == z)


@triton.jit
def noted(new, fine, moving):
    """OUT_OF_RANGE for rows (ROWS, 1) of which a count has left its range, or an update was none."""
    far = (new >= COUNT_LIMIT) | (new <= -COUNT_LIMIT) | (fine == 0)
    return tl.max((moving & far).to(tl.int32), 1)[:, None] * OUT_OF_RANGE


@triton.jit
def depth_noted(at, capacity, BACK: tl.constexpr):
    """RAN_EMPTY or OVERFLOWED for stacks (ROWS, 1) whose depth is none."""
    return tl.where(at < 0, RAN_EMPTY, 0) if BACK else tl.where(at > capacity, OVERFLOWED, 0)
