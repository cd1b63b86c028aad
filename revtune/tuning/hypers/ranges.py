"""What a regularizer's strength may be: one number, or one for each example, within limits.

A tuned value is a number, a 0-d tensor, or a tensor (B,) of one value for each of B examples, in user units. No
gradient flows through it: hyperparameters learn through the weights' response alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Between, Hyper, Integer, Rate

Value = float | Tensor


@dataclass(frozen=True)
class Range:
    """Limits of a value, themselves allowed.

    Args:
        low, high: the limits.
        whole: whether it must be an integer.
        per_batch: whether it acts on a whole batch, so that examples cannot each have their own.

    Example:
        >>> Range(0, 1).check("p", torch.tensor([0.5, 1.5]))
        Traceback (most recent call last):
        ValueError: p must lie in 0..1, got 1.5
    """

    low: float
    high: float = math.inf
    whole: bool = False
    per_batch: bool = False

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"{'be an integer' if self.whole else 'lie'} in {self.low:g}..{self.high:g}"
        return f"be {'an integer of ' if self.whole else ''}at least {self.low:g}"

    def check(self, name: str, value: Value) -> None:
        """Raise `ValueError`, which begins with the value's name, unless all of the value is in the range."""
        given = torch.as_tensor(value).detach()
        if given.dim() > (0 if self.per_batch else 1):
            shape = "one number" if self.per_batch else "one number or one for each example, of shape (B,)"
            raise ValueError(f"{name} must be {shape}, got shape {tuple(given.shape)}")
        good = (given >= self.low) & (given <= self.high)
        if self.whole:
            good &= given == given.floor() if given.is_floating_point() else True
        if not bool(good.all()):
            raise ValueError(f"{name} must {self}, got {given[~good].flatten()[0].item():g}")

    def check_tuned(self, name: str, value: float | str, hypers: Hyperparameters) -> None:
        """Raise `ValueError` unless a number is in the range, or every value that a hyperparameter can have.

        Args:
            name: what the value is of, for the message.
            value: a number, or the name of a hyperparameter.
            hypers: where that name is looked up.
        """
        if not isinstance(value, str):
            return self.check(name, value)
        if value not in hypers.names:
            raise ValueError(f"{name}: there is no hyperparameter {value!r}; there are {', '.join(hypers.names)}")
        spec = hypers.spec(value)
        low, high = bounds(spec)
        refusal = f"{name} must {self}, but hyperparameter {value!r}"
        if low < self.low or high > self.high:
            raise ValueError(f"{refusal} is a {type(spec).__name__} from {low:g} to {high:g}")
        if self.whole and not isinstance(spec, Integer):
            raise ValueError(f"{refusal} is a {type(spec).__name__}; Integer(...) gives integers")
        if self.per_batch and spec.per != "batch":
            raise ValueError(f'{name} acts on a whole batch, so hyperparameter {value!r} must have per="batch"')


def bounds(spec: Hyper) -> tuple[float, float]:
    """The least and the largest value that a hyperparameter can have."""
    if isinstance(spec, Rate):
        return 0.0, 1.0
    return (spec.low, spec.high) if isinstance(spec, Between | Integer) else (0.0, math.inf)


def by_example(name: str, value: Value, x: Tensor, batch_dim: int) -> Value:
    """A value shaped to broadcast over x, whose dimension `batch_dim` is examples.

    Raises:
        ValueError: it has one value for each of another number of examples.
    """
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if not -x.dim() <= batch_dim < x.dim() or value.shape != (x.shape[batch_dim],):
        raise ValueError(
            f"{name} must be one number or one for each example along dimension {batch_dim} of {tuple(x.shape)}, got "
            f"shape {tuple(value.shape)}"
        )
    shape = [1] * x.dim()
    shape[batch_dim] = -1
    return value.detach().view(shape)
