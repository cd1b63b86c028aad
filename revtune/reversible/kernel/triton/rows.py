"""Rows of a batch in a program: whether they run at a step, and from which state it takes them up.

Shapes: M positions (step, row), B rows, N units.
"""

import triton
import triton.language as tl


@triton.jit
def beginning(resets, position, inside):
    """Whether rows begin anew before the step of positions, of which some are `inside`."""
    return tl.load(resets + position, mask=inside, other=0) != 0


@triton.jit
def found(states, anew, begins, at, anew_at, here, ANEW: tl.constexpr):
    """States as a step finds them: as the one before has left them, and with ANEW, where rows begin anew, `anew`."""
    if ANEW:
        place = tl.where(begins, anew + anew_at, states + at)
    else:
        place = states + at
    return tl.load(place, mask=here, other=0.0)


@triton.jit
def running(lengths, starts, row, inside, step):
    """Whether rows, of which some are `inside`, run at a step."""
    started = tl.load(starts + row, mask=inside, other=0) <= step
    return started & (tl.load(lengths + row, mask=inside, other=0) > step)
