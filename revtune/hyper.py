"""Hyperparameters that are tuned by gradient: their ranges, current values, perturbations and who reads them.

A hyperparameter lives unconstrained, as a real number l; what a user sees is a monotone function of it::

    Rate       sigmoid(l)                              dropout, probabilities
    Between    low + (high - low) * sigmoid(l)
    Positive   softplus(l)                             penalties
    Integer    floor(low + (high + 1 - low) * sigmoid(l))

Training sees perturbed copies `l + scale * e`, e normal, one for each example, or one for all where the
hyperparameter acts on a whole batch (MacKay et al. 2019, section 3.2).

Shapes: B examples, n hyperparameters.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.errors import HyperparameterError

Scope = Literal["example", "batch"]


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
            if not _number(value) or value <= 0:
                raise ValueError(f"{kind}: {name} must be a positive number, got {value!r}")
        if self.tune_scale and self.scale > self.max_scale:
            raise ValueError(f"{kind}: scale must be at most max_scale {self.max_scale}, got {self.scale}")
        if not _number(self.initial):
            raise ValueError(f"{kind}: the initial value must be a finite number, got {self.initial!r}")
        self.check()

    def check(self) -> None:
        """Raise `ValueError` for a range or an initial value that cannot be."""

    def value(self, raw: Tensor) -> Tensor:
        """User units from l."""
        raise NotImplementedError

    def raw(self) -> float:
        """l of the initial value."""
        raise NotImplementedError


@dataclass(frozen=True)
class Rate(Hyper):
    """A probability or a share, strictly between 0 and 1: `sigmoid(l)`.

    At 0 or 1 itself l would be infinite and no gradient would reach it, so neither can be started from.

    Raises:
        ValueError: the initial value is not strictly between 0 and 1.

    Example:
        >>> Hyperparameters(drop=Rate(0.05)).values()
        {'drop': 0.05}
    """

    initial: float = 0.05

    def check(self) -> None:
        """As in `Hyper`."""
        if not 0 < self.initial < 1:
            raise ValueError(f"Rate: the initial value must be strictly between 0 and 1, got {self.initial}")

    def value(self, raw: Tensor) -> Tensor:
        """As in `Hyper`."""
        return torch.sigmoid(raw)

    def raw(self) -> float:
        """As in `Hyper`."""
        return _logit(self.initial)


@dataclass(frozen=True)
class Between(Hyper):
    """A real number strictly between two bounds: `low + (high - low) * sigmoid(l)`.

    Raises:
        ValueError: the bounds are not in order, or the initial value is not strictly between them.

    Example:
        >>> Hyperparameters(hue=Between(0.1, 0.0, 0.5)).values()
        {'hue': 0.1}
    """

    low: float
    high: float

    def check(self) -> None:
        """As in `Hyper`."""
        if not (_number(self.low) and _number(self.high)) or self.low >= self.high:
            raise ValueError(f"Between: low must be less than high, got low={self.low!r}, high={self.high!r}")
        if not self.low < self.initial < self.high:
            bounds = f"strictly between {self.low} and {self.high}"
            raise ValueError(f"Between: the initial value must be {bounds}, got {self.initial}")

    def value(self, raw: Tensor) -> Tensor:
        """As in `Hyper`."""
        return self.low + (self.high - self.low) * torch.sigmoid(raw)

    def raw(self) -> float:
        """As in `Hyper`."""
        return _logit((self.initial - self.low) / (self.high - self.low))


@dataclass(frozen=True)
class Positive(Hyper):
    """A positive number: `softplus(l)`, which is exp(l) for small ones, so that they move by factors.

    Raises:
        ValueError: the initial value is not positive.

    Example:
        >>> Hyperparameters(decay=Positive(1e-4)).values()
        {'decay': 0.0001}
    """

    def check(self) -> None:
        """As in `Hyper`."""
        if self.initial <= 0:
            raise ValueError(f"Positive: the initial value must be positive, got {self.initial}")

    def value(self, raw: Tensor) -> Tensor:
        """As in `Hyper`."""
        return F.softplus(raw)

    def raw(self) -> float:
        """As in `Hyper`."""
        return _softplus_inverse(self.initial)


@dataclass(frozen=True)
class Integer(Hyper):
    """An integer from low to high: `floor(low + (high + 1 - low) * sigmoid(l))`, started in the middle of its bin.

    The gradient moves l past the bounds of bins only where perturbations reach over them: a scale that is small against
    a bin leaves it where it is.

    Raises:
        ValueError: a bound or the initial value is no integer, or they are not in order.

    Example:
        >>> Hyperparameters(holes=Integer(1, 0, 4)).values()
        {'holes': 1}
    """

    low: int
    high: int

    def check(self) -> None:
        """As in `Hyper`."""
        for name in ("initial", "low", "high"):
            if getattr(self, name) != int(getattr(self, name)):
                raise ValueError(f"Integer: {name} must be an integer, got {getattr(self, name)!r}")
        if self.low >= self.high:
            raise ValueError(f"Integer: low must be less than high, got low={self.low}, high={self.high}")
        if not self.low <= self.initial <= self.high:
            raise ValueError(
                f"Integer: the initial value must be from {self.low} to {self.high}, got {int(self.initial)}"
            )

    def value(self, raw: Tensor) -> Tensor:
        """As in `Hyper`."""
        bins = self.high + 1 - self.low
        return torch.floor(self.low + bins * torch.sigmoid(raw)).clamp(max=self.high)

    def raw(self) -> float:
        """As in `Hyper`."""
        return _logit((self.initial - self.low + 0.5) / (self.high + 1 - self.low))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _logit(share: float) -> float:
    return math.log(share) - math.log1p(-share)


OPTIMIZER = ("lr", "learning_rate", "momentum", "dampening", "betas", "beta1", "beta2", "eps", "clip", "optimizer_decay")


class Values:
    """Hyperparameters by name in user units, as `h.name` or `h["a.dotted.name"]`.

    Args:
        hypers: whose names and ranges.
        raw: l of each example, shape (B, n).
    """

    def __init__(self, hypers: Hyperparameters, raw: Tensor) -> None:
        self._hypers, self._raw = hypers, raw

    def __getitem__(self, name: str) -> Tensor:
        self._hypers.read.add(name)
        spec, column = self._hypers.spec(name), self._raw[:, self._hypers.column(name)]
        return spec.value(column if spec.per == "example" else column[0])

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]


@dataclass(frozen=True)
class Pass:
    """One forward pass of a tuned model: what its examples' hyperparameters are, and what its layers do.

    Attributes:
        size: B.
        delta: what responses are linear in, shape (B, n); None where every response is zero.
        raw: perturbed l for those who read values, shape (B, n); None on validation, where reading is an error.
        training: whether regularizers act and running statistics move.
        tape: None for an ordinary pass. Else responses add nothing to the network's values: a pass with a recording
            tape keeps what each would have added, and one under forward differentiation carries it as a tangent.
    """

    size: int
    delta: Tensor | None
    raw: Tensor | None
    training: bool = True
    statistics: bool = False
    tape: Any = None


class Hyperparameters(nn.Module):
    """Named hyperparameters, to be tuned by gradient.

    Args:
        named: `Rate`, `Between`, `Positive` or `Integer` by name.

    Attributes:
        raw: l, shape (n,).
        spread: what scales are the softplus of, shape (n,).
        read: names that training has read so far.
        centred: whether responses are to the difference from the current l (Delta-STN) or to l itself (STN).

    Raises:
        ValueError: there are none; a name belongs to the optimizer, whose settings no loss depends on.

    Example:
        >>> hypers = Hyperparameters(drop=Rate(0.25), holes=Integer(1, 0, 4))
        >>> hypers.values()
        {'drop': 0.25, 'holes': 1}
    """

    def __init__(self, **named: Hyper) -> None:
        super().__init__()
        if not named:
            raise ValueError("Hyperparameters wants at least one, such as drop=Rate(0.05)")
        for name, spec in named.items():
            if not isinstance(spec, Hyper):
                kinds = "Rate, Between, Positive or Integer"
                raise ValueError(f"hyperparameter {name!r} must be a {kinds}, got {type(spec).__name__} {spec!r}")
            if name in OPTIMIZER:
                raise ValueError(
                    f"hyperparameter {name!r} cannot be tuned: it belongs to the optimizer, and the training loss does "
                    "not depend on it, so weights have no response to it"
                )
        self.specs = dict(named)
        self.raw = nn.Parameter(torch.tensor([spec.raw() for spec in named.values()]))
        self.spread = nn.Parameter(torch.tensor([_softplus_inverse(spec.scale) for spec in named.values()]))
        self.centred = True
        self._pass: Pass | None = None
        self.read: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in order."""
        return tuple(self.specs)

    def spec(self, name: str) -> Hyper:
        """The hyperparameter of a name.

        Raises:
            HyperparameterError: there is none of that name.
        """
        if name not in self.specs:
            raise HyperparameterError(f"there is no hyperparameter {name!r}; there are {', '.join(self.names)}")
        return self.specs[name]

    def column(self, name: str) -> int:
        """Its place among all."""
        return self.names.index(name)

    def values(self) -> dict[str, float]:
        """Current values in user units."""
        raw = self.raw.detach().double()
        found = {name: spec.value(raw[i]).item() for i, (name, spec) in enumerate(self.specs.items())}
        return {name: int(v) if isinstance(self.specs[name], Integer) else _short(v) for name, v in found.items()}

    def scales(self) -> dict[str, float]:
        """Current standard deviations of the perturbations of l."""
        return dict(zip(self.names, map(_short, F.softplus(self.spread.detach().double()).tolist()), strict=True))

    def perturbed(self, size: int, generator: torch.Generator | None = None, *, tuned_only: bool = False) -> Tensor:
        """`l + scale * e` for B examples, shape (B, n), differentiable in l and the scales; perhaps of tuned scales."""
        noise = torch.randn(size, len(self.specs), generator=generator, device=self.raw.device, dtype=self.raw.dtype)
        together = [i for i, spec in enumerate(self.specs.values()) if spec.per == "batch"]
        if together:
            noise[:, together] = noise[:1, together]
        if tuned_only:
            noise = noise * self.raw.new_tensor([spec.tune_scale for spec in self.specs.values()])
        return self.raw + F.softplus(self.spread) * noise

    def entropy(self) -> Tensor:
        """Entropy of the perturbations of tuned scale, in nats: their sum of log scale + log(2 pi e) / 2."""
        tuned = self.raw.new_tensor([spec.tune_scale for spec in self.specs.values()])
        return ((F.softplus(self.spread).log() + 0.5 * math.log(2 * math.pi * math.e)) * tuned).sum()

    @torch.no_grad()
    def cap(self) -> None:
        """Bring tuned scales back below their caps."""
        most = [_softplus_inverse(spec.max_scale) for spec in self.specs.values()]
        self.spread.clamp_(max=torch.tensor(most, dtype=self.spread.dtype, device=self.spread.device))

    @contextlib.contextmanager
    def bound(self, to: Pass) -> Iterator[None]:
        """A pass for the modules that read from here, until the block ends."""
        before, self._pass = self._pass, to
        try:
            yield
        finally:
            self._pass = before

    @property
    def current(self) -> Pass | None:
        """The pass that is bound."""
        return self._pass

    def __getitem__(self, name: str) -> float | Tensor:
        """A value in user units: the current one, or inside a training pass the perturbed ones, (B,) or 0-d.

        Raises:
            HyperparameterError: inside a validation pass, whose loss must not see hyperparameters; no such name.
        """
        self.spec(name)
        if self._pass is None:
            return self.values()[name]
        if self._pass.raw is None:
            raise HyperparameterError(
                f"hyperparameter {name!r} is read in a validation pass: the validation loss must reach it through the "
                "weights' response alone"
            )
        return Values(self, self._pass.raw)[name]

    def delta(self) -> Tensor | None:
        """What responses are linear in now, (B, n), or (1, n) outside a pass; None where they are zero."""
        if self._pass is not None:
            return self._pass.delta
        return None if self.centred else self.raw.detach()[None]

    def get_extra_state(self) -> dict[str, Any]:
        """Names and whether it is centred, which saved numbers mean nothing without."""
        return {"names": list(self.names), "centred": self.centred}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what `get_extra_state` gave.

        Raises:
            ValueError: it is of other hyperparameters.
        """
        if tuple(state["names"]) != self.names:
            raise ValueError(f"saved hyperparameters are {', '.join(state['names'])}; these are {', '.join(self.names)}")
        self.centred = bool(state["centred"])

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        own = {"raw": self.raw, "spread": self.spread, "_extra_state": self.get_extra_state()}
        own = {prefix + name: value for name, value in own.items()}
        if not own.keys() & state.keys():  # weights of the plain network
            state |= own
        super()._load_from_state_dict(state, prefix, *rest)

    def extra_repr(self) -> str:
        """Names and current values."""
        return ", ".join(f"{name}={value}" for name, value in self.values().items())


def _softplus_inverse(value: float) -> float:
    return value + math.log(-math.expm1(-value))


def _short(value: float) -> float:
    """Rounded to the digits that float32 has."""
    return float(f"{value:.7g}")
