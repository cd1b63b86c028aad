"""Finite numbers, and states within the range in which fixed-point arithmetic is exact."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from revtune.errors import NonFiniteError, StateRangeError
from revtune.reversible.cells import fixed

LARGEST_COUNT = fixed.STATE_RANGE * fixed.STATE_ONE
"""Counts must stay below this, 2^52, in absolute value."""


def check_finite(value: Tensor, what: str) -> None:
    """Refuse NaN and infinities.

    Raises:
        NonFiniteError: names `what`, where it is not finite and what it holds there.
    """
    if value.numel() == 0:
        return
    index = _first_bad(value.detach())
    if index is not None:
        raise NonFiniteError(f"{what} is not finite: {float(value[index])} at index {index}")


def check_input(x: Tensor, first: int, name: str) -> None:
    """Refuse a chunk of inputs (K, B, I), beginning at step `first`, that is not finite.

    Raises:
        NonFiniteError: names layer, step and row.
    """
    index = _first_bad(x)
    if index is not None:
        k, row, feature = index
        value = float(x[k, row, feature])
        raise NonFiniteError(
            f"{name}: input is not finite: {value} at step {first + k}, batch row {row}, feature {feature}; "
            "padding, too, must be finite"
        )


def check_state(state: Tensor, what: str) -> None:
    """Refuse a state (real values) that is not finite or not below 2^20.

    Raises:
        NonFiniteError, StateRangeError: name `what` and the value.
    """
    check_finite(state, what)
    peak = float(state.detach().abs().amax()) if state.numel() else 0.0
    if peak >= fixed.STATE_RANGE:
        raise StateRangeError(f"{what} holds {peak:g}, outside the exact range |h| < 2^20 = {fixed.STATE_RANGE:.0f}")


def name_bad_count(counts: Tensor, part: str, step: int, name: str) -> None:
    """Raise for the first count (B, N) that is not finite or out of range, if there is one.

    Raises:
        NonFiniteError, StateRangeError: name layer, part, unit, row and step.
    """
    bad = ~(counts.abs() < LARGEST_COUNT)  # NaN fails the comparison too
    if not bool(bad.any()):
        return
    row, unit = (int(i) for i in bad.nonzero()[0])
    value = fixed.from_counts(counts[row, unit])
    where = f"{name}: state {part}, unit {unit}, batch row {row}, step {step}"
    if not bool(value.isfinite()):
        raise NonFiniteError(
            f"{where} is {float(value)}: a gate or an update is not finite; are the weights too large?"
        )
    raise StateRangeError(f"{where} is {float(value):g}, outside the exact range |h| < 2^20 = {fixed.STATE_RANGE:.0f}")


def _first_bad(value: Tensor) -> tuple[int, ...] | None:
    """The index at which a tensor first is NaN or infinite."""
    if math.isfinite(float(value.sum())):
        return None  # what is not finite stays in a sum, which is cheaper; finite numbers may overflow it
    low, high = torch.aminmax(value)  # one pass, without a mask of the tensor's size; NaN becomes both
    if math.isfinite(float(low)) and math.isfinite(float(high)):
        return None
    return tuple(int(i) for i in (~value.isfinite()).nonzero()[0])
