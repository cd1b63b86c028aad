"""Hyperparameters by name: their current values, their perturbations, and who reads them in which pass.

Training sees perturbed copies of unconstrained hyperparameters, one copy for each example, or one for all where a
hyperparameter acts on a whole batch (MacKay et al. 2019, section 3.2). The words of this half::

    l     `raw`        unconstrained numbers: the current ones (n,), or perturbed ones l + scale * e, (B, n), e normal
          `scale`      standard deviation of the perturbations, (n,); tuned as `spread`, of which it is the softplus
    d     `departure`  what responses are linear in, (B, n): l's distance from the current l, counted in the scales that
                       perturbations start with (Delta-STN), or l itself (STN)
          value        what users see, a monotone function of l (`kinds`)

Shapes: B examples, n hyperparameters.
"""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointFunction

from revtune.errors import HyperparameterError
from revtune.tuning.hypers.kinds import Hyper, Integer, softplus_inverse
from revtune.tuning.hypers.perturbation import perturbed

FARTHEST = 3.0
"""The largest l that STN's responses are to see at the start: about that of a `Rate` of 0.05, the default (-2.94)."""

OPTIMIZER_SETTINGS = (
    "lr",
    "learning_rate",
    "momentum",
    "dampening",
    "betas",
    "beta1",
    "beta2",
    "eps",
    "clip",
    "clip_norm",
    "grad_clip",
    "lr_decay",
    "nesterov",
    "optimizer_decay",
    "optimizer_weight_decay",
    "batch_size",
)


class Values:
    """Hyperparameters by name in user units, as `h.name` or `h["a.dotted.name"]`.

    Args:
        hypers: which hyperparameters.
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
        departure: d, shape (B, n); None where every response is zero.
        raw: perturbed l, from which values are read, shape (B, n); None on validation, where reading is an error.
        training: whether it is a pass of a training step.
        statistics: whether running statistics move, those of modules in training mode.
        record: a `ResponseRecord` in the two passes of a linearised prediction, else None. With one, responses add
            nothing to the network's values: the first pass records what each would have added, and the second, under
            forward differentiation, carries it as a tangent.
        rows: a `RowsMemory`, by which layers know whose rows they are given; None outside of a tuner's steps.
    """

    size: int
    departure: Tensor | None
    raw: Tensor | None
    training: bool = True
    statistics: bool = False
    record: Any = None
    rows: Any = None


class Hyperparameters(nn.Module):
    """Named hyperparameters, to be tuned by gradient.

    Args:
        named: `Rate`, `Between`, `Positive` or `Integer` by name.

    Attributes:
        raw: l, shape (n,).
        spread: the inverse softplus of the scales of perturbations, shape (n,).
        read: names that training has read so far.
        centred: whether responses are linear in the difference from the current l (Delta-STN) or in l itself (STN);
            see `departure`.
        witness: a `Witness`, by which it is seen whether others changed responses; None where there is none yet.

    Raises:
        ValueError: there are none; a name belongs to the optimizer, whose settings no loss depends on.

    Example:
        >>> hypers = Hyperparameters(drop=Rate(0.25), holes=Integer(1, 0, 4))
        >>> hypers.values()
        {'drop': 0.25, 'holes': 1}
    """

    may_be_empty: ClassVar[bool] = False

    def __init__(self, **named: Hyper) -> None:
        super().__init__()
        if not named and not self.may_be_empty:
            raise ValueError("Hyperparameters wants at least one, such as drop=Rate(0.05)")
        for name, spec in dict[str, Any](named).items():
            if not isinstance(spec, Hyper):
                kinds = "Rate, Between, Positive or Integer"
                raise ValueError(f"hyperparameter {name!r} must be a {kinds}, got {type(spec).__name__} {spec!r}")
            if name.lower() in OPTIMIZER_SETTINGS:
                raise ValueError(
                    f"hyperparameter {name!r} cannot be tuned: it belongs to the optimizer, and the training loss does "
                    "not depend on it, so weights have no response to it"
                )
        self.specs = dict(named)
        self.raw = nn.Parameter(torch.tensor([spec.raw() for spec in named.values()]))
        self.spread = nn.Parameter(torch.tensor([softplus_inverse(spec.scale) for spec in named.values()]))
        self.centred = True
        self._pass: Pass | None = None
        self.read: set[str] = set()
        self.witness: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: kinds as plain values, so that `torch.load(weights_only=True)` needs no other name."""
        return {**self.__dict__, "witness": None, "specs": {name: spec.to_plain() for name, spec in self.specs.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up what `__getstate__` gave."""
        specs = {name: Hyper.from_plain(plain) for name, plain in state["specs"].items()}
        super().__setstate__({"witness": None, **state, "specs": specs})

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
        """The column of a hyperparameter in tensors (B, n)."""
        return self.names.index(name)

    def values(self) -> dict[str, float]:
        """Current values in user units."""
        raw = self.raw.detach().double()
        values = {name: spec.value(raw[i]).item() for i, (name, spec) in enumerate(self.specs.items())}
        return {name: int(v) if isinstance(self.specs[name], Integer) else _short(v) for name, v in values.items()}

    def scales(self) -> dict[str, float]:
        """Current standard deviations of the perturbations of l."""
        return dict(zip(self.names, map(_short, F.softplus(self.spread.detach().double()).tolist()), strict=True))

    def perturbed(self, size: int, generator: torch.Generator | None = None, *, tuned_only: bool = False) -> Tensor:
        """`l + scale * e` for B examples, shape (B, n), differentiable in l and the scales.

        With `tuned_only`, hyperparameters whose scale is not tuned are not perturbed.
        """
        specs = list(self.specs.values())
        return perturbed(self.raw, self.spread, specs, size, generator, tuned_only=tuned_only)

    def departure(self, raw: Tensor) -> Tensor:
        """d at l of each example, shape (B, n), in which responses are linear.

        For Delta-STN it is l's distance from the current l, in units of the scale that perturbations start with. For
        STN it is l itself, divided so that none starts farther from 0 than FARTHEST. The units matter, as a response
        learns at a rate proportional to d^2: in l's own units, Delta-STN's responses would learn scale^2 as fast as
        the weights beside them, and STN's would diverge where l is -9.
        """
        if not self.centred:
            return raw / raw.new_tensor([max(1.0, abs(spec.raw()) / FARTHEST) for spec in self.specs.values()])
        return (raw - self.raw.detach()) / raw.new_tensor([spec.scale for spec in self.specs.values()])

    def entropy(self) -> Tensor:
        """Entropy of those perturbations whose scale is tuned, in nats: the sum of log scale + log(2 pi e) / 2."""
        tuned = self.raw.new_tensor([spec.tune_scale for spec in self.specs.values()])
        return ((F.softplus(self.spread).log() + 0.5 * math.log(2 * math.pi * math.e)) * tuned).sum()

    @torch.no_grad()
    def cap(self) -> None:
        """Bring tuned scales back below their caps."""
        caps = [softplus_inverse(s.max_scale) if s.tune_scale else math.inf for s in self.specs.values()]
        self.spread.clamp_(max=torch.tensor(caps, dtype=self.spread.dtype, device=self.spread.device))

    @contextlib.contextmanager
    def bound(self, to: Pass) -> Iterator[None]:
        """Modules that read hyperparameters from here are in this pass until the block ends."""
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
        """A value in user units: outside a pass the current one, in a training pass the perturbed ones, (B,) or 0-d.

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

    def current_departure(self) -> Tensor | None:
        """d of the pass that is bound, (B, n), or outside a pass of the current l, (1, n); None where it is zero.

        Raises:
            ValueError: inside a pass, it is asked for within a reentrant checkpoint, which would cut its gradient off.
        """
        if self._pass is not None:
            if self._pass.record is None and not torch.is_grad_enabled() and _reentrant():
                raise ValueError(
                    "torch.utils.checkpoint must be called with use_reentrant=False here: hyperparameters have no "
                    "gradient through a reentrant one"
                )
            return self._pass.departure
        return None if self.centred else self.departure(self.raw.detach()[None])

    def get_extra_state(self) -> dict[str, Any]:
        """Names, `centred`, and the units of departures: saved numbers mean nothing without them."""
        return {"names": list(self.names), "centred": self.centred, "units": self._units()}

    def _units(self) -> list[list[float]]:
        """Each one's first l and first scale, which set the units of `departure`."""
        return [[spec.raw(), spec.scale] for spec in self.specs.values()]

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Load what `get_extra_state` gave.

        Raises:
            ValueError: it is the state of other hyperparameters.
        """
        if tuple(state["names"]) != self.names:
            raise ValueError(
                f"saved hyperparameters are {', '.join(state['names'])}; these are {', '.join(self.names)}"
            )
        for name, saved, own in zip(self.names, state["units"], self._units(), strict=True):
            if saved != own:
                raise ValueError(
                    f"saved hyperparameter {name!r} started at l = {saved[0]:.4g} with scale {saved[1]:.4g}, which its "
                    f"responses are counted in; this one starts at l = {own[0]:.4g} with scale {own[1]:.4g}"
                )
        self.centred = bool(state["centred"])

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        own = {"raw": self.raw, "spread": self.spread, "_extra_state": self.get_extra_state()}
        own = {prefix + name: value for name, value in own.items()}
        if not own.keys() & state.keys():  # a plain network's weights are loaded: hyperparameters stay as they are
            state |= own
        super()._load_from_state_dict(state, prefix, *rest)

    def extra_repr(self) -> str:
        """Names and current values."""
        return ", ".join(f"{name}={value}" for name, value in self.values().items())


def _reentrant() -> bool:
    """Whether a reentrant checkpoint is among the callers; torch has no other way to ask."""
    return any(frame.f_code is CheckpointFunction.forward.__code__ for frame, _ in traceback.walk_stack(None))


def initial_values(hypers: Hyperparameters) -> dict[str, float]:
    """Where hyperparameters were made to begin, in user units."""
    return Hyperparameters(**hypers.specs).values()


def _short(value: float) -> float:
    """Rounded to seven digits, as many as float32 holds."""
    return float(f"{value:.7g}")
