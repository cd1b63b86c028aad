"""Kinds of hyperparameters that are tuned by gradient, and their ranges.

A hyperparameter lives unconstrained, as a real number l; what a user sees is a monotone function of it::

    Rate       sigmoid(l)                              dropout, probabilities
    Between    low + (high - low) * sigmoid(l)
    Positive   softplus(l)                             penalties
    Integer    floor(low + (high + 1 - low) * sigmoid(l))

`Hyperparameters` holds a set of them by name, with their current values and perturbations.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Scope = Literal["example", "batch"]
"""What shares one perturbation."""

NEAREST = 1e-5
"""How near to a bound a value may start, as a share of the way from bound to bound.

The slope of a sigmoid at a share s is s (1 - s): nearer than this, l has less than a hundred-thousandth of the value's
gradient.
"""


@dataclass(frozen=True)
class Hyper:
    """What all hyperparameters have in common; use `Rate`, `Between`, `Positive` or `Integer`.

    Args:
        initial: where it starts, in user units.
        per: "example" gives every example its own perturbation, "batch" one to all.
        scale: standard deviation of the perturbation of l, positive; where it starts if it is tuned.
        tune_scale: whether the scale is tuned too, by the entropy reward of validation steps.
        max_scale: what a tuned scale stays below.
    """

    initial: float
    per: Scope = field(default="example", kw_only=True)
    scale: float = field(default=0.5, kw_only=True)
    tune_scale: bool = field(default=True, kw_only=True)
    max_scale: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if self.per not in ("example", "batch"):
            raise ValueError(f'{kind}: per must be "example" or "batch", got {self.per!r}')
        for name in ("scale", "max_scale"):
            value = getattr(self, name)
            if not _is_finite(value) or value <= 0:
                raise ValueError(f"{kind}: {name} must be a positive number, got {value!r}")
        if self.tune_scale and self.scale > self.max_scale:
            raise ValueError(f"{kind}: scale must be at most max_scale {self.max_scale}, got {self.scale}")
        if not _is_finite(self.initial):
            raise ValueError(f"{kind}: the initial value must be a finite number, got {self.initial!r}")
        self.check()

    def to_plain(self) -> dict[str, Any]:
        """The kind's name and its settings."""
        return {"kind": _name(type(self)), **dataclasses.asdict(self)}

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> Hyper:
        """The hyperparameter that `to_plain` gave this of."""
        kinds = {_name(kind): kind for kind in _below(Hyper)}
        if plain["kind"] not in kinds:
            raise ValueError(f"there is no kind of hyperparameter {plain['kind']!r}; there are {', '.join(kinds)}")
        return kinds[plain["kind"]](**{name: value for name, value in plain.items() if name != "kind"})

    def check(self) -> None:
        """Raise `ValueError` for an impossible range or initial value."""

    def value(self, raw: Tensor) -> Tensor:
        """User units from l."""
        raise NotImplementedError

    def raw(self) -> float:
        """l of the initial value."""
        raise NotImplementedError


def check_signal(kind: str, initial: float, share: float) -> None:
    """Refuse an initial value so near to a bound that no gradient would reach it.

    Args:
        kind: the hyperparameter's kind, for the message.
        initial: the value.
        share: how far it is on the way from bound to bound, from 0 to 1.

    Raises:
        ValueError: the value is nearer than NEAREST.
    """
    if not NEAREST <= share <= 1 - NEAREST:
        near = f"within {NEAREST:g} of a bound, counted from bound to bound"
        raise ValueError(f"{kind}: the initial value {initial!r} is {near}, where no gradient would move it")


@dataclass(frozen=True)
class Rate(Hyper):
    """A probability or a share, strictly between 0 and 1: `sigmoid(l)`.

    At 0 or 1 itself l would be infinite and no gradient would reach it, so neither can be started from.

    Args:
        initial: where it starts, strictly between 0 and 1; 0.05 by default.
        per, scale, tune_scale, max_scale: how it is perturbed, as in `Hyper`.

    Raises:
        ValueError: the initial value is not strictly between 0 and 1.

    Example:
        >>> Hyperparameters(drop=Rate(0.05)).values()
        {'drop': 0.05}
    """

    initial: float = 0.05

    def check(self) -> None:
        """Refuse an initial value at 0 or 1, or beyond."""
        if not 0 < self.initial < 1:
            raise ValueError(f"Rate: the initial value must be strictly between 0 and 1, got {self.initial}")
        check_signal("Rate", self.initial, self.initial)

    def value(self, raw: Tensor) -> Tensor:
        """User units from l."""
        return torch.sigmoid(raw)

    def raw(self) -> float:
        """l of the initial value."""
        return _logit(self.initial)


@dataclass(frozen=True)
class Between(Hyper):
    """A real number strictly between two bounds: `low + (high - low) * sigmoid(l)`.

    Args:
        initial: where it starts, strictly between the bounds.
        low, high: the bounds.
        per, scale, tune_scale, max_scale: how it is perturbed, as in `Hyper`.

    Raises:
        ValueError: the bounds are not in order, or the initial value is not strictly between them.

    Example:
        >>> Hyperparameters(hue=Between(0.1, 0.0, 0.5)).values()
        {'hue': 0.1}
    """

    low: float
    high: float

    def check(self) -> None:
        """Refuse bounds out of order, and an initial value at one or beyond."""
        if not (_is_finite(self.low) and _is_finite(self.high)) or self.low >= self.high:
            raise ValueError(f"Between: low must be less than high, got low={self.low!r}, high={self.high!r}")
        if not self.low < self.initial < self.high:
            bounds = f"strictly between {self.low} and {self.high}"
            raise ValueError(f"Between: the initial value must be {bounds}, got {self.initial}")
        check_signal("Between", self.initial, (self.initial - self.low) / (self.high - self.low))

    def value(self, raw: Tensor) -> Tensor:
        """User units from l."""
        return self.low + (self.high - self.low) * torch.sigmoid(raw)

    def raw(self) -> float:
        """l of the initial value."""
        return _logit((self.initial - self.low) / (self.high - self.low))


@dataclass(frozen=True)
class Positive(Hyper):
    """A positive number: `softplus(l)`, which is exp(l) for small ones, so that they move by factors.

    Args:
        initial: where it starts, above 0.
        per, scale, tune_scale, max_scale: how it is perturbed, as in `Hyper`.

    Raises:
        ValueError: the initial value is not positive.

    Example:
        >>> Hyperparameters(decay=Positive(1e-4)).values()
        {'decay': 0.0001}
    """

    def check(self) -> None:
        """Refuse an initial value that is not above 0."""
        if self.initial <= 0:
            raise ValueError(f"Positive: the initial value must be positive, got {self.initial}")

    def value(self, raw: Tensor) -> Tensor:
        """User units from l."""
        return F.softplus(raw)

    def raw(self) -> float:
        """l of the initial value."""
        return softplus_inverse(self.initial)


@dataclass(frozen=True)
class Integer(Hyper):
    """An integer from low to high: `floor(low + (high + 1 - low) * sigmoid(l))`, started in the middle of its bin.

    A value learns only where its perturbations reach into neighbouring bins. With a scale that is small against a bin
    it stays where it is.

    Args:
        initial: where it starts.
        low, high: the least and the greatest.
        per, scale, tune_scale, max_scale: how it is perturbed, as in `Hyper`.

    Raises:
        ValueError: a bound or the initial value is no integer, or they are not in order.

    Example:
        >>> Hyperparameters(holes=Integer(1, 0, 4)).values()
        {'holes': 1}
    """

    low: int
    high: int

    def check(self) -> None:
        """Refuse what is no integer, bounds out of order, and an initial value beyond one."""
        for name in ("initial", "low", "high"):
            value = getattr(self, name)
            if not _is_finite(value) or value != int(value):
                raise ValueError(f"Integer: {name} must be an integer, got {value!r}")
        if self.low >= self.high:
            raise ValueError(f"Integer: low must be less than high, got low={self.low}, high={self.high}")
        if not self.low <= self.initial <= self.high:
            raise ValueError(
                f"Integer: the initial value must be from {self.low} to {self.high}, got {int(self.initial)}"
            )

    def value(self, raw: Tensor) -> Tensor:
        """User units from l."""
        bins = self.high + 1 - self.low
        return torch.floor(self.low + bins * torch.sigmoid(raw)).clamp(max=self.high)  # where sigmoid rounds to 1

    def raw(self) -> float:
        """l of the initial value. It is in the middle of its bin."""
        return _logit((self.initial - self.low + 0.5) / (self.high + 1 - self.low))


def is_number(value: object) -> bool:
    """Whether something is a number, which may be infinite or NaN; booleans are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _name(kind: type[Hyper]) -> str:
    """What a kind is saved by: a user's with its module, as it may have the name of one of these."""
    return kind.__name__ if kind.__module__ == __name__ else f"{kind.__module__}.{kind.__qualname__}"


def _below(kind: type[Hyper]) -> list[type[Hyper]]:
    """All subclasses, also those of users."""
    return [each for child in kind.__subclasses__() for each in (child, *_below(child))]


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def _logit(share: float) -> float:
    return math.log(share) - math.log1p(-share)


def softplus_inverse(value: float) -> float:
    """The l whose softplus is this positive value: log(exp(value) - 1), without overflow."""
    return value + math.log(-math.expm1(-value))
