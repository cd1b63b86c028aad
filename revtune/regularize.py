"""Regularizers whose strengths are tuned: modules that read hyperparameters as training passes over them.

In training inside a pass a module takes each example's perturbed value, in training outside one the current value. In
evaluation it does nothing and reads nothing, as a validation loss must reach hyperparameters through responses alone.

`TunedDropout` and its kin are nn.Dropout with their class changed, as response layers are; the others are written into
a network of one's own, and given a hyperparameter's name, or a number that stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from revtune.hyperparameters import Hyperparameters
from revtune.linearized import Recorded
from revtune.noise import DEVIATION, RATE, add_noise, drop_mask, time_dim
from revtune.ranges import Range, Value
from revtune.response import laid


class Tuned(nn.Module):
    """What regularizers with tuned values share; write one's own by saying `limits` and reading `self.value(key)`.

    Args:
        hypers: where names are looked up; the same that `self_tuning` is given.
        batch_dim: which dimension of inputs is examples.
        values: a hyperparameter's name or a number for each of `limits`.

    Attributes:
        limits: what each value may be.
        plain: the class of torch that it becomes where it is tuned no more.
        advice: what may help where it was given rows that are not the examples'; `name` is its class.

    Raises:
        ValueError: there is no such hyperparameter, or it or the number can be outside the limits.

    Example:
        >>> class Gain(Tuned):
        ...     limits = {"gain": Range(0)}
        ...     def forward(self, x): return x * self.along("gain", x) if self.training else x
        >>> hypers = Hyperparameters(gain=Positive(2.0))
        >>> Gain(hypers, gain="gain")(torch.ones(3))
        tensor([2., 2., 2.])
    """

    limits: ClassVar[dict[str, Range]] = {}
    plain: ClassVar[type[nn.Module]] = nn.Identity
    advice: ClassVar[str] = "{name}(..., batch_dim=1) is for inputs whose first dimension is time"

    def __init__(self, hypers: Hyperparameters, *, batch_dim: int = 0, **values: float | str) -> None:
        super().__init__()
        self._take_up(hypers, batch_dim, values)

    def _take_up(self, hypers: Hyperparameters, batch_dim: int, values: dict[str, float | str]) -> None:
        for key, value in values.items():
            self.limits[key].check_tuned(f"{type(self).__name__}: {key}", value, hypers)
        self._hypers, self._values, self.batch_dim = (hypers,), dict(values), batch_dim

    @property
    def hypers(self) -> Hyperparameters:
        """Where it reads."""
        return self._hypers[0]

    def value(self, key: str) -> Value:
        """A strength now, in user units: a number, 0-d, or (B,); detached."""
        value = self._values[key]
        found = self.hypers[value] if isinstance(value, str) else value
        return found.detach() if isinstance(found, Tensor) else found

    def along(self, key: str, x: Tensor, unit_dim: int = -1) -> Value:
        """A strength now, shaped to broadcast over x as responses are over outputs (`response.laid`)."""
        value = self.value(key)
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        over = x.shape if x.dim() > 1 else (*x.shape, 1)
        found = laid(value[:, None], over, self.batch_dim, unit_dim, type(self).__name__, self.advice)
        return found if x.dim() > 1 else found[:, 0]

    def once(self, x: Tensor, change: Callable[[], Tensor]) -> Tensor:
        """`change()`, x changed at some cost; Delta-STN's second pass does without where it can (`linearized`)."""
        tape = self._tape
        return change() if tape is None else tape.once(self, x, change)

    def times(self, x: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """`x * draw()`; Delta-STN's second pass takes what was drawn in the first."""
        tape = self._tape
        return x * draw() if tape is None else tape.times(self, x, draw)

    def drawn(self, draw: Callable[[], Tensor]) -> Tensor:
        """`draw()`, which is small; Delta-STN's second pass takes what was drawn in the first."""
        tape = self._tape
        return draw() if tape is None else tape.drawn(self, draw)

    @property
    def _tape(self) -> Recorded | None:
        bound = self.hypers.current
        return None if bound is None else bound.tape

    def now(self) -> dict[str, float]:
        """Current values of all strengths."""
        current = self.hypers.values()
        return {key: current[value] if isinstance(value, str) else value for key, value in self._values.items()}

    def drop(self) -> None:
        """Become a plain torch module that is equal in evaluation."""
        for name in ("_hypers", "_values", "batch_dim"):
            delattr(self, name)
        self.__class__ = self.plain  # type: ignore[assignment]

    def extra_repr(self) -> str:
        """What each strength is tuned by, or its number."""
        return ", ".join(f"{key}={value!r}" for key, value in self._values.items())


class Dropping(Tuned):
    """What the dropouts of torch share when their rate is tuned: their class is changed, and then they `adopt`.

    Attributes:
        dims: how many dimensions inputs must have of which whole channels are dropped; None drops single numbers.
    """

    limits = {"p": RATE}
    advice = "self_tuning(..., batch_dim=1) is for inputs whose first dimension is time"
    dims: ClassVar[int | None] = None
    p: float
    inplace: bool

    def adopt(self, hypers: Hyperparameters, name: str, batch_dim: int = 0) -> None:
        """Take the rate from the hyperparameter of a name; called once, when the class has just been changed.

        Raises:
            ValueError: there is no such hyperparameter, or it is no rate.
        """
        self._take_up(hypers, batch_dim, {"p": name})

    def forward(self, x: Tensor) -> Tensor:
        """x, in training with a share of it dropped."""
        if not self.training:
            return x
        if self.hypers.current is None:
            self.p = self.now()["p"]
            dropped: Tensor = self.plain.forward(self, x)
            return dropped
        if self.dims not in (None, x.dim()):
            raise ValueError(f"{type(self).__name__} wants {self.dims} dimensions, (B, C, ...), got {tuple(x.shape)}")
        return x.mul_(self._mask(x)) if self.inplace else self.times(x, lambda: self._mask(x))

    def _mask(self, x: Tensor) -> Tensor:
        """Of single numbers or of whole channels."""
        if self.dims is None:
            return drop_mask(x.shape, self.along("p", x), x)
        return drop_mask([*x.shape[:2], *[1] * (x.dim() - 2)], self.along("p", x, 1), x)

    def drop(self) -> None:
        """Become plain again, at the current rate."""
        self.p = self.now()["p"]
        super().drop()

    def extra_repr(self) -> str:
        """The hyperparameter that the rate is."""
        return f"{super().extra_repr()}, inplace={self.inplace}"


class TunedDropout(Dropping, nn.Dropout):
    """nn.Dropout at a tuned rate: `module.__class__ = TunedDropout; module.adopt(hypers, "drop", 0)`.

    Example:
        >>> module = nn.Dropout(0.3)
        >>> module.__class__ = TunedDropout
        >>> module.adopt(Hyperparameters(drop=Rate(0.25)), "drop")
        >>> module.drop()
        >>> module
        Dropout(p=0.25, inplace=False)
    """

    plain = nn.Dropout


class TunedDropout1d(Dropping, nn.Dropout1d):
    """nn.Dropout1d, which drops whole channels of (B, C, L), at a tuned rate."""

    plain, dims = nn.Dropout1d, 3


class TunedDropout2d(Dropping, nn.Dropout2d):
    """nn.Dropout2d, which drops whole channels of (B, C, H, W), at a tuned rate."""

    plain, dims = nn.Dropout2d, 4


class TunedDropout3d(Dropping, nn.Dropout3d):
    """nn.Dropout3d, which drops whole channels of (B, C, D, H, W), at a tuned rate."""

    plain, dims = nn.Dropout3d, 5


class TunedLockedDropout(Tuned):
    """Locked dropout at a tuned rate: one mask for all steps of a sequence.

    Args:
        hypers: where the name is looked up.
        p: a hyperparameter's name, or a rate.
        batch_dim: 0 for sequences (B, T, H), 1 for (T, B, H).

    Raises:
        ValueError: there is no such hyperparameter, or it is no rate; inputs are no sequences.

    Example:
        >>> drop = TunedLockedDropout(Hyperparameters(drop=Rate(0.5)), "drop", batch_dim=1)
        >>> y = drop(torch.ones(5, 3, 4))
        >>> torch.equal(y[0], y[4])
        True
    """

    limits = {"p": RATE}

    def __init__(self, hypers: Hyperparameters, p: float | str, *, batch_dim: int = 0) -> None:
        super().__init__(hypers, batch_dim=batch_dim, p=p)

    def forward(self, x: Tensor) -> Tensor:
        """x, in training with units dropped from whole sequences."""
        if not self.training:
            return x
        shape = list(x.shape)
        shape[time_dim(type(self).__name__, x, self.batch_dim)] = 1
        return self.times(x, lambda: drop_mask(shape, self.along("p", x), x))


class TunedNoise(Tuned):
    """Normal noise of a tuned standard deviation, for inputs.

    Args:
        hypers: where the name is looked up.
        deviation: a hyperparameter's name, or a number.
        batch_dim: which dimension of inputs is examples.

    Raises:
        ValueError: there is no such hyperparameter, or it can be negative.

    Example:
        >>> noise = TunedNoise(Hyperparameters(noise=Between(0.1, 0.0, 0.3)), "noise")
        >>> noise(torch.zeros(100, 100)).std().round(decimals=2)
        tensor(0.1000)
    """

    limits = {"deviation": DEVIATION}

    def __init__(self, hypers: Hyperparameters, deviation: float | str, *, batch_dim: int = 0) -> None:
        super().__init__(hypers, batch_dim=batch_dim, deviation=deviation)

    def forward(self, x: Tensor) -> Tensor:
        """x, in training with noise added."""
        return add_noise(x, self.along("deviation", x)) if self.training else x
