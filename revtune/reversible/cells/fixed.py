"""Fixed-point numbers: states in whole counts of 2^-32, forget gates in whole counts of 2^-10.

Counts are whole numbers held in float64. While a state stays below 2^20 its count stays below 2^52, so every sum,
product and floor division that rewinding needs is exact in float64's 53 bits, on every device, and a NaN or an
infinity stays visible instead of turning into some integer. Nothing here writes in place, so that graphs can hold it.
"""

from __future__ import annotations

import torch
from torch import Tensor

STATE_ONE = 2.0**32
"""The count of the state 1.0."""

STATE_RANGE = 2.0**20
"""States must stay below this in absolute value; up to here all arithmetic on counts is exact."""

FORGET_ONE = 1024
"""The forget integer of the gate 1.0: nothing is forgotten."""


def to_counts(value: Tensor) -> Tensor:
    """The whole number of 2^-32 nearest to each value, ties to even.

    Args:
        value: real numbers, |value| < 2^20, any shape, any float dtype.

    Returns:
        float64 whole numbers of the same shape. NaN and infinities are passed on, never rounded away.

    Example:
        >>> to_counts(torch.tensor([1.0, -0.5])).tolist()
        [4294967296.0, -2147483648.0]
    """
    return (value.double() * STATE_ONE).round()


def from_counts(count: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """The real value of a count: exact in float64, rounded once in a narrower dtype.

    Example:
        >>> from_counts(torch.tensor([2.0**31], dtype=torch.float64))
        tensor([0.5000], dtype=torch.float64)
    """
    return (count * (1.0 / STATE_ONE)).to(dtype)


def round_forget(z: Tensor, top: int = FORGET_ONE) -> Tensor:
    """Round a forget gate to a multiple of 2^-10 in [2^-10, top * 2^-10]; the gradient passes straight through.

    Args:
        z: gate values in [0, 1], any shape; finite ones outside are clamped, infinite ones become NaN.
        top: the largest forget integer allowed, 1..1024. RevLSTM uses 1023, which bounds its cell state by 1025.

    Returns:
        A tensor of z's dtype and shape whose values are exact multiples of 2^-10, with dL/dz = dL/d(result).

    Example:
        >>> (round_forget(torch.tensor([0.0, 0.5004, 1.0])) * 1024).tolist()
        [1.0, 512.0, 1024.0]
    """
    value = z.detach()
    rounded = (value * FORGET_ONE).round().clamp(1, top) * (1 / FORGET_ONE)
    rounded = torch.add(rounded, value, alpha=0.0)  # clamping hides an infinity; 0 times it is NaN
    if not (torch.is_grad_enabled() and z.requires_grad):
        return rounded
    return rounded + (z - z.detach())  # plus an exact 0 whose gradient is 1


def forget_integer(z: Tensor) -> Tensor:
    """The forget integer 1024 z of a rounded gate, as float64 whole numbers.

    Example:
        >>> forget_integer(torch.tensor([0.5]))
        tensor([512.], dtype=torch.float64)
    """
    return z.detach().double() * FORGET_ONE


def is_rough(z: Tensor) -> Tensor:
    """Whether any gate is no multiple of 2^-10 in [2^-10, 1], 0-d. NaN is not: the state that it leads to is refused.

    Example:
        >>> is_rough(torch.tensor([0.5, 0.3])).item()
        True
    """
    count = forget_integer(z)
    wrong = (count != count.round()) | (count < 1) | (count > FORGET_ONE)
    return (wrong & ~count.isnan()).any()
