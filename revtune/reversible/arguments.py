"""What functions are given: numbers, switches, tensors and lengths, each refused with a sentence of its own."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from revtune.reversible.storage import check_stored


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


def check_fraction(name: str, value: float, meaning: str = "") -> float:
    """Refuse a number outside 0..1; `meaning`, which the message adds after a comma, is what the number is.

    Raises:
        ValueError: names the argument and the value.
    """
    if not (is_number(value) and 0.0 <= value <= 1.0):
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
    if not (is_number(max_forget_bits) and math.isfinite(max_forget_bits) and max_forget_bits > 0):
        raise ValueError(f"max_forget_bits must be a positive number or None for no limit, got {max_forget_bits!r}")


def is_number(value: object) -> bool:
    """Whether this is a real number."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_flag(name: str, flag: bool) -> bool:
    """Refuse a switch that is neither True nor False.

    Raises:
        ValueError: names the argument and the value.
    """
    if not isinstance(flag, bool):
        raise ValueError(f"{name} must be True or False, got {flag!r}")
    return flag


def check_tensor(what: str, given: object) -> Tensor:
    """Refuse what is no dense tensor, or one whose memory is gone.

    Raises:
        ValueError: names `what` and the kind of thing that was given.
        ReversalError: names `what`.
    """
    if not isinstance(given, Tensor):
        raise ValueError(f"{what} must be a tensor, got {type(given).__name__}")
    if given.layout != torch.strided or given.is_nested:
        raise ValueError(f"{what} must be a dense tensor, got {'a nested one' if given.is_nested else given.layout}")
    check_stored(what, given)
    return given


def check_like(what: str, given: Tensor, dtype: torch.dtype, device: torch.device, model: str) -> None:
    """Refuse a tensor that has not the dtype and the device of `model`.

    Raises:
        ValueError: names both, what was expected and what was given.
    """
    if given.dtype != dtype or given.device != device:
        raise ValueError(f"{what} must be {dtype} on {device} like {model}, got {given.dtype} on {given.device}")


def check_materialized(what: str, tensor: Tensor) -> None:
    """Refuse a tensor that has a shape but holds no numbers.

    Raises:
        ValueError: it is on the meta device, or a FakeTensor.
    """
    if tensor.device.type == "meta" or isinstance(tensor, FakeTensor):
        kind = "fake" if isinstance(tensor, FakeTensor) else "meta"
        raise ValueError(f"{what} must hold numbers, which exact states are made of, got a {kind} tensor")


def check_lengths(
    lengths: Tensor | None, steps: int, rows: int, device: torch.device,
    names: tuple[str, str] = ("lengths", "the steps of the input"),
) -> None:  # fmt: skip
    """Refuse lengths that are not one of 1..T for each row; their range goes unchecked while a graph is compiled.

    Args:
        lengths: None for all steps.
        steps, rows: T, B.
        device: of the input.
        names: what messages call the lengths, and what T counts.

    Raises:
        ValueError: wrong shape, dtype, device or range.
        ReversalError: their memory is gone.
    """
    name, counted = names
    if lengths is None:
        return
    if not isinstance(lengths, Tensor):
        raise ValueError(f"{name} must be a tensor of {rows} integers, one a row, got {type(lengths).__name__}")
    if lengths.shape != (rows,) or lengths.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"{name} must be {rows} integers, one a row, got {lengths.dtype} of shape {tuple(lengths.shape)}"
        )
    if lengths.device != device:
        raise ValueError(f"{name} are on {lengths.device}, the input on {device}")
    check_stored(name, lengths)
    # Looking at values would break a graph that is being compiled in two
    if torch.compiler.is_compiling() or not rows:
        return
    if not (1 <= int(lengths.min()) and int(lengths.max()) <= steps):
        bad = int(((lengths < 1) | (lengths > steps)).nonzero()[0])
        raise ValueError(f"{name} must lie in 1..{steps}, {counted}, got {int(lengths[bad])} in row {bad}")


def running(lengths: Tensor, first: int, last: int) -> Tensor:
    """Which rows have not ended at steps `first` to `last`, (last - first, B)."""
    return torch.arange(first, last, device=lengths.device).unsqueeze(1) < lengths
