"""Numbers and switches as users give them: a bool is no number, and nothing but a bool is a switch."""

from __future__ import annotations

import math
from numbers import Real


def is_size(value: object) -> bool:
    """Whether this is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_size(name: str, size: int) -> int:
    """Refuse a size that is no positive integer.

    Raises:
        ValueError: names the argument and the value.
    """
    if not is_size(size):
        raise ValueError(f"{name} must be a positive integer, got {size!r}")
    return size


def check_flag(name: str, flag: bool) -> bool:
    """Refuse a switch that is neither True nor False.

    Raises:
        ValueError: names the argument and the value.
    """
    if not isinstance(flag, bool):
        raise ValueError(f"{name} must be True or False, got {flag!r}")
    return flag


def check_fraction(name: str, value: float, meaning: str = "") -> float:
    """Refuse a number outside 0..1; `meaning`, said after a comma, is what the number is.

    Raises:
        ValueError: names the argument and the value.
    """
    if not (_is_number(value) and 0.0 <= value <= 1.0):
        raise ValueError(f"{name} must lie in 0..1{meaning and f', {meaning}'}, got {value!r}")
    return float(value)


def check_rate(name: str, p: float) -> float:
    """Refuse a dropout rate outside 0..1.

    Raises:
        ValueError: names the argument and the value.
    """
    return check_fraction(name, p, "the probability of dropping")


def check_bits(max_forget_bits: float | None) -> None:
    """Refuse a limit on forgetting that is no positive number.

    Raises:
        ValueError: the limit is zero, negative, NaN or infinite.
    """
    if max_forget_bits is None:
        return
    if not (_is_number(max_forget_bits) and math.isfinite(max_forget_bits) and max_forget_bits > 0):
        raise ValueError(f"max_forget_bits must be a positive number or None for no limit, got {max_forget_bits!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
