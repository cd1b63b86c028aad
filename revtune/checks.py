"""What is checked while a sequence runs: finite numbers, states in range, and that rewinding came back."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from revtune import fixed
from revtune.errors import NonFiniteError, StateRangeError

LARGEST_COUNT = fixed.STATE_RANGE * fixed.STATE_ONE
_BLOCK = 2**16
"""Numbers of a tensor that are mixed at a time, which stay in a core's cache."""
_KEY, _MIX = -0x61C8864680B583EB, -0x40A7B892E31B1A47


def checksum(depth: int, tensors: Iterable[Tensor]) -> int:
    """64 bits of float64 or int64 tensors and a number; sensitive to every bit, to order and to position.

    Each value's bits are xored with a key of its place, multiplied, folded and multiplied again before they are added
    up, so that differences do not cancel. 0 and -0 count as the same.
    """
    total = depth
    for values in tensors:
        bits = values if values.dtype == torch.int64 else (values + 0.0).view(torch.int64)
        key = torch.arange(1, values.numel() + 1, device=values.device).mul_(_KEY).view(values.shape)
        mixed = (bits ^ key).mul_(_MIX)
        mixed = (mixed ^ (mixed >> 29)).mul_(_KEY)
        total = (total * 0x100000001B3 + int((mixed ^ (mixed >> 32)).sum())) & (2**64 - 1)
    return total


def fingerprint(tensor: Tensor) -> int:
    """A number that a change of bits, or of their places, almost surely changes: their checksum, block by block."""
    bits = tensor.detach().resolve_neg().contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int64)
    return checksum(0, (block.long() for block in bits.flatten().split(_BLOCK)))


def hooked(module: nn.Module) -> bool:
    """Whether somebody wants to see a module's calls or their gradients."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def check_tensor(what: str, given: object) -> Tensor:
    """Refuse what is no dense tensor.

    Raises:
        ValueError: names `what` and the kind of thing that was given.
    """
    if not isinstance(given, Tensor):
        raise ValueError(f"{what} must be a tensor, got {type(given).__name__}")
    if given.layout != torch.strided or given.is_nested:
        raise ValueError(f"{what} must be a dense tensor, got {'a nested one' if given.is_nested else given.layout}")
    return given


def check_like(what: str, given: Tensor, dtype: torch.dtype, device: torch.device, model: str) -> None:
    """Refuse a tensor of another dtype or on another device than `model`, which has these.

    Raises:
        ValueError: names both, what was expected and what was given.
    """
    if given.dtype != dtype or given.device != device:
        raise ValueError(f"{what} must be {dtype} on {device} like {model}, got {given.dtype} on {given.device}")


def check_numbers(what: str, tensor: Tensor) -> None:
    """Refuse a tensor that stands for numbers without holding any.

    Raises:
        ValueError: it is on the meta device, or a FakeTensor.
    """
    if tensor.device.type == "meta" or isinstance(tensor, FakeTensor):
        kind = "fake" if isinstance(tensor, FakeTensor) else "meta"
        raise ValueError(f"{what} must hold numbers, which exact states are made of, got a {kind} tensor")


def check_finite(value: Tensor, what: str) -> None:
    """Refuse NaN and infinities.

    Raises:
        NonFiniteError: names `what`, where it is not finite and what it holds there.
    """
    if value.numel() == 0:
        return
    place = _first_bad(value.detach())
    if place is not None:
        raise NonFiniteError(f"{what} is not finite: {float(value[place])} at index {place}")


def check_input(x: Tensor, first: int, name: str) -> None:
    """Refuse a chunk of inputs (K, B, I), of which the first is step `first`, that is not finite.

    Raises:
        NonFiniteError: names layer, step and row.
    """
    place = _first_bad(x)
    if place is not None:
        k, row, feature = place
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
    bad = ~(counts.abs() < LARGEST_COUNT)
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
    """Where a tensor first is NaN or infinite."""
    low, high = torch.aminmax(value)
    if math.isfinite(float(low)) and math.isfinite(float(high)):
        return None
    return tuple(int(i) for i in (~value.isfinite()).nonzero()[0])
