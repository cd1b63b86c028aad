"""Layers whose weights answer to hyperparameters.

A response layer adds to what a layer computes a product with a second weight, scaled for each example and output unit
by a linear function of its hyperparameters (MacKay et al. 2019, section 3.1; centred as in Bae and Grosse 2020)::

    y = W0 x + b0 + (Q_w d) * (W1 x) + Q_b d

d is what `Hyperparameters.departure` tells. W0 and b0 are the layer's own parameters and keep their names; W1, Q_w and
Q_b are `response_weight`, `response_scale` and `response_shift`. Q starts at 0, so that a converted layer starts as the
layer it was. Normalisations scale each unit already, and answer by their affine weights alone:
`y = (w + Q_w d) * x + b + Q_b d`.

A layer is converted where it stands, by changing its class, so that whoever holds it, and its hooks, stay right.

Shapes: B examples, n hyperparameters, U output units or channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.responses.linearized import Change, Recorded, tangent_of

Layer = TypeVar("Layer", bound=nn.Module)


ADDED = ("response_weight", "response_scale", "response_shift")


ROWS = (
    "self_tuning(batch_dim=1) is for models whose first dimension is time, self_tuning(leave=[{name!r}]) lets this "
    "layer be"
)
"""What may help a layer that was given rows that are not the examples'."""


class Responding(nn.Module):
    """What response layers share.

    Attributes:
        plain: the class that it was.
        unit_dim: which dimension of its output are units.
        batch_dim: which dimension of its input are examples.
    """

    plain: Any
    unit_dim = -1
    batch_dim: int
    weight: Any
    bias: Any
    response_weight: Any
    response_scale: Any
    response_shift: Any

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """Why a plain layer of this kind cannot respond; None if it can."""
        computed = [name for name in ("weight", "bias") if name not in module._parameters and hasattr(module, name)]
        return f"its {computed[0]} is no parameter of its own, but computed from others" if computed else None

    @property
    def hypers(self) -> Hyperparameters:
        """What it answers to."""
        found: Hyperparameters = self._hypers[0]
        return found

    def adopt(self, hypers: Hyperparameters, name: str, batch_dim: int) -> None:
        """Take up the parameters of the response; called once, when the class has just been changed."""
        self._hypers, self._name, self.batch_dim = (hypers,), name, batch_dim
        n, weight = len(hypers.names), self.weight
        self._add("response_weight", self.second(weight))
        self._add("response_scale", weight.new_zeros(self.units(), n))
        self._add("response_shift", None if self.bias is None else weight.new_zeros(self.units(), n))

    def _add(self, name: str, value: Tensor | None) -> None:
        self.register_parameter(name, None if value is None else nn.Parameter(value.detach()))

    @property
    def added(self) -> list[str]:
        """Names of the parameters of the response."""
        return [name for name in self._parameters if name.startswith(ADDED)]

    def units(self) -> int:
        """U."""
        return self.weight.shape[0]

    def second(self, weight: Tensor) -> Tensor | None:
        """W1 as it starts: as spread as the weight is now."""
        spread = weight.detach().std() if weight.numel() > 1 else weight.detach().abs().sum()
        return torch.randn_like(weight) * torch.where(spread > 0, spread, weight[0].numel() ** -0.5)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the plain layer does, linear in weight and bias."""
        raise NotImplementedError

    def base(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        return self.product(x, self.weight, self.bias)

    def scaled_by(self, x: Tensor) -> Tensor:
        """What the response scales: W1 x."""
        return self.product(x, self.response_weight, None)

    def change(self, x: Tensor, y: Tensor, d: Tensor) -> Change:
        """What the response adds to the output y."""
        scale, product = self.along(F.linear(d, self.response_scale), y), self.scaled_by(x)
        shift = None if self.response_shift is None else self.along(F.linear(d, self.response_shift), y)
        return Change(scale, product, shift)

    def answered(self, x: Tensor, d: Tensor) -> Tensor:
        """The plain output and the response together."""
        y = self.base(x)
        scale, product, shift = self.change(x, y, d)
        answer = torch.addcmul(y, scale, product)
        return answer if shift is None else answer.add_(shift)

    def along(self, scalars: Tensor, y: Tensor) -> Tensor:
        """Scalars (B, U), shaped to be multiplied with an output."""
        return lay_along(scalars, y, self.batch_dim, self.unit_dim, self._name)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, at each example's hyperparameters."""
        bound = self.hypers.current
        if bound is not None and bound.tape is not None:
            assert bound.delta is not None
            return self._linearized(x, bound.delta, bound.tape)
        d = self.hypers.delta()
        return self.base(x) if d is None else self.answered(x, d)

    def _linearized(self, x: Tensor, d: Tensor, tape: Recorded) -> Tensor:
        if tape.recording:
            y = self.base(x)
            return tape.add(self, y, self.change(x.detach(), y, d))
        known, change = tape.next(self)
        y = self.base(forward_ad.unpack_dual(x).primal) if known is None else known
        carried = self.carry(x)
        return forward_ad.make_dual(y, change if carried is None else change + carried)

    def carry(self, x: Tensor) -> Tensor | None:
        """The tangent of the plain output, from that of x; None where x has none."""
        tangent = tangent_of(x)
        return None if tangent is None else self.product(tangent, self.weight, None)

    def fold(self, d: Tensor) -> None:
        """Make the plain layer of it that gives the same outputs at d, shape (n,)."""
        with torch.no_grad():
            scale = self.response_scale @ d
            self.weight += self.by_unit(scale, self.weight) * self.response_weight
            if self.response_shift is not None:
                self.bias += self.response_shift @ d
        self.drop()

    def drop(self) -> None:
        """Become the plain layer again, as it is where all responses are zero."""
        for name in self.added:
            del self._parameters[name]
        self._modules.pop("hyperparameters", None)
        self.__dict__.pop("_told", None)
        del self._hypers, self._name, self.batch_dim
        self.__class__ = self.plain

    def by_unit(self, scale: Tensor, weight: Tensor) -> Tensor:
        """Scalars (U,), shaped to be multiplied with a weight."""
        return scale.reshape(-1, *[1] * (weight.dim() - 1))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        own = {name: value for name in self.added if (value := self._parameters[name]) is not None}
        if not any(prefix + name in state for name in own):
            plain = any(prefix + name in state for name in self._parameters)
            for name, value in own.items():
                state[prefix + name] = torch.zeros_like(value) if plain and name.startswith(ADDED[1:]) else value
        super()._load_from_state_dict(state, prefix, *rest)


def lay_along(scalars: Tensor, y: Tensor, batch_dim: int, unit_dim: int, name: str) -> Tensor:
    """Scalars (B, U) as `laid` shapes them, of y's dtype."""
    return laid(scalars, y.shape, batch_dim, unit_dim, name).to(y.dtype)


def laid(scalars: Tensor, over: Sequence[int], batch_dim: int, unit_dim: int, name: str, advice: str = ROWS) -> Tensor:
    """Scalars (B, U) to broadcast over a shape, whose dimensions `batch_dim` and `unit_dim` are examples and units.

    Where time or patches have been flattened into the examples, B-fold many rows are told apart by `batch_dim`: 0 for
    rows in which an example's stand together, 1 for those in which each step has one row of every example.

    Raises:
        ValueError: the shape has neither B rows nor a multiple of it.
    """
    size, units = scalars.shape
    unit_dim %= len(over)
    axis = batch_dim if batch_dim < unit_dim else 0
    rows = over[axis]
    if size not in (1, rows):
        if axis != 0 or rows % size or unit_dim == 0:
            raise ValueError(
                f"{name}: dimension {axis} of its output {tuple(over)} must be the batch of {size} examples, or a "
                f"multiple of it; {advice.format(name=name)}"
            )
        times = rows // size
        scalars = scalars.repeat(times, 1) if batch_dim else scalars.repeat_interleave(times, 0)
    shape = [1] * len(over)
    shape[axis], shape[unit_dim] = scalars.shape[0], units
    return scalars if list(scalars.shape) == shape else scalars.reshape(shape)
