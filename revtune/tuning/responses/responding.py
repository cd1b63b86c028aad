"""What all layers share whose weights respond to hyperparameters.

A response layer adds to what a layer computes a product with a second weight, scaled for each example and output unit
by a linear function of its hyperparameters (MacKay et al. 2019, section 3.1; centred as in Bae and Grosse 2020)::

    y = W0 x + b0 + (Q_w d) * (W1 x) + Q_b d

    d                     the hyperparameters' departure (`Hyperparameters.departure`)
    W0, b0                the layer's own parameters, which keep their names
    W1, Q_w, Q_b          `response_weight`, `response_scale` and `response_shift`
    Q_w d, Q_b d          scale and shift of the response, one scalar an example and unit (B, U)

Q starts at 0, so that a converted layer starts as the layer it was. Normalisations scale each unit already, and respond
by their affine weights alone: `y = (w + Q_w d) * x + b + Q_b d`.

A layer is converted where it stands, by changing its class: its parameters, its hooks and all that refer to it stay.

Shapes: B examples, n hyperparameters, U output units or channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from revtune.sequences import Along, Nobody, Positions, streamed
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.responses.linearized import Change, ResponseRecord, tangent_of
from revtune.tuning.responses.rows import Laid, Told, laid_in

ADDED = ("response_weight", "response_scale", "response_shift")
"""What the names of a response's parameters begin with."""

FROZEN = "its weights are frozen"
"""Why a layer has no response whose weights required no gradient when its network was converted."""

ADVICE = (
    "self_tuning(batch_dim=1) is for models whose first dimension is time, self_tuning(rows={{{name!r}: "
    '"together"}}) says how rows repeat ("together", "alternating", "all", or a list of each row\'s example), '
    "self_tuning(leave=[{name!r}]) lets this layer be"
)
"""What may help a layer whose input's rows are not the examples."""


class Responding(nn.Module):
    """What response layers share.

    Attributes:
        plain: torch's class, which it was and can become again.
        unit_dim: which dimension of its output is units.
        weight_unit_dim: which dimension of its weight is units.
        batch_dim: which dimension of its input is examples.
        rows: how the examples' rows repeat, where its user says so (`rows`).
    """

    rows: Told = None
    plain: Any
    unit_dim = -1
    weight_unit_dim = 0
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

    @classmethod
    def told_batch_dim(cls, module: nn.Module) -> int | None:
        """Which dimension of its network's inputs is examples, as far as a plain layer of this kind tells it."""
        return None

    @property
    def hypers(self) -> Hyperparameters:
        """The hyperparameters that it responds to."""
        hypers: Hyperparameters = self._hypers[0]
        return hypers

    def adopt(self, hypers: Hyperparameters, name: str, batch_dim: int) -> None:
        """Take up the parameters of the response; called once, when the class has just been changed."""
        # in a tuple, as nn.Module would make the set a child of every layer, and its parameters theirs
        self._hypers, self._name, self.batch_dim = (hypers,), name, batch_dim
        n, weight = len(hypers.names), self.weight
        self._add("response_weight", self.initial_response_weight(weight))
        self._add("response_scale", weight.new_zeros(self.units(), n))
        self._add("response_shift", None if self.bias is None else weight.new_zeros(self.units(), n))

    def _add(self, name: str, value: Tensor | None) -> None:
        self.register_parameter(name, None if value is None else nn.Parameter(value.detach()))

    @property
    def added(self) -> list[str]:
        """Names of the parameters of the response."""
        return [name for name in self._parameters if name.startswith(ADDED)]

    def weights_are_own(self) -> bool:
        """Whether every weight that responds is a parameter, as when it was converted, and not computed from others."""
        scales = (name for name in self.added if name.startswith("response_scale"))
        return all(scale.replace("response_scale", "weight") in self._parameters for scale in scales)

    def units(self) -> int:
        """How many output units or channels there are."""
        return self.weight.shape[self.weight_unit_dim]

    def initial_response_weight(self, weight: Tensor) -> Tensor | None:
        """W1 as it starts: normal, with the weight's own deviation; for a constant weight, 1 / sqrt(inputs)."""
        deviation = weight.detach().std() if weight.numel() > 1 else weight.detach().abs().sum()
        start = torch.randn_like(weight, requires_grad=False)
        return start.mul_(torch.where(deviation > 0, deviation, weight[0].numel() ** -0.5))

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the plain layer does, linear in weight and bias."""
        raise NotImplementedError

    def base(self, x: Tensor) -> Tensor:
        """The plain layer's output."""
        return self.product(x, self.weight, self.bias)

    def response_product(self, x: Tensor) -> Tensor:
        """W1 x, which the response scales."""
        return self.product(x, self.response_weight, None)

    def change(self, x: Tensor, y: Tensor, d: Tensor) -> Change:
        """What the response adds to the output y."""
        scale, product = self.along(F.linear(d, self.response_scale), y, x), self.response_product(x)
        shift = None if self.response_shift is None else self.along(F.linear(d, self.response_shift), y, x)
        return Change(scale, product, shift)

    def with_response(self, x: Tensor, d: Tensor) -> Tensor:
        """The plain output and the response together."""
        y = self.base(x)
        scale, product, shift = self.change(x, y, d)
        out = torch.addcmul(y, scale, product)
        return out if shift is None else out.add_(shift)

    def along(self, scalars: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Scalars (B, U), shaped to broadcast over the output y for an input x."""
        laid = self.laid(x, y.shape, len(scalars))
        return laid.spread(scalars, y.shape, self.unit_dim).to(y.dtype)

    def laid(self, x: Tensor, shape: Sequence[int], size: int) -> Laid:
        """How B examples lie in an input, for which the output has this shape."""
        bound = self.hypers.current
        return laid_in(
            self, x, shape, size, unit_dim=self.unit_dim, name=self._name, advice=ADVICE,
            memory=None if bound is None else bound.rows,
        )  # fmt: skip

    def shared(self, x: Tensor, size: int) -> bool:
        """Whether the rows of an input are the same for all examples, so that the layer does not respond to them."""
        if size == 1:
            return False
        if isinstance(streamed.get(), Nobody):
            return True
        one_row = self.shared_by_all(x, size) and not self._rows_known(x, size)
        if not one_row and self.laid(x, self.output_shape(x), size).way != "all":
            return False
        if (one_row or self.rows is None) and not self.__dict__.get("_warned"):
            self.__dict__["_warned"] = True
            given = self._shared_input(x) if one_row else f"{tuple(x.shape)} that are"
            what = f"{self._name} was given {given} the same for all {size} examples"
            warnings.warn(f"{what}, as positions are: it does not respond there", stacklevel=3)
        return True

    def _rows_known(self, x: Tensor, size: int) -> bool:
        """Whether rows are examples' own though there is one of them: followed from the batch, or a stream's."""
        bound, handed = self.hypers.current, streamed.get()
        if x.dim() < 2:
            return False
        if isinstance(handed, Positions) and handed.number == 1:
            return True
        if isinstance(handed, Along):
            return x.shape[handed.axis] == handed.count(size)
        return bound is not None and bound.rows is not None and bound.rows.knows(self, x, size)

    def output_shape(self, x: Tensor) -> Sequence[int]:
        """The shape of the output for an input, as far as rows are concerned: as many dimensions, and rows."""
        return x.shape

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, at each example's hyperparameters."""
        bound = self.hypers.current
        if bound is not None and self.shared(x, bound.size):
            return self.base(x)
        if bound is not None and bound.record is not None:
            assert bound.departure is not None
            return self._linearized(x, bound.departure, bound.record)
        d = self.hypers.current_departure()
        if d is None:
            return self.base(x)
        y = self.with_response(x, d)
        probe = None if bound is None or bound.rows is None else bound.rows.probe
        return y if probe is None else probe.added_to(self, y, self.laid(x, y.shape, len(d)), len(d), self.unit_dim)

    def shared_by_all(self, x: Tensor, size: int) -> bool:
        """Whether an input is the same for all examples: one row, or a vector; the layer does not respond to it."""
        unit_dim = self.unit_dim % max(x.dim(), 1)
        return x.dim() < 2 or x.shape[self.batch_dim if self.batch_dim < unit_dim else 0] == 1

    def _shared_input(self, x: Tensor) -> str:
        """What is said of an input that all examples share."""
        return f"one row, {tuple(x.shape)}, that is"

    def _linearized(self, x: Tensor, d: Tensor, record: ResponseRecord) -> Tensor:
        if record.recording:
            y = self.base(x)
            return record.keep_change(self, y, self.change(x.detach(), y, d))
        kept, change = record.recall_change(self)
        y = self.base(forward_ad.unpack_dual(x).primal) if kept is None else kept
        tangent = self.output_tangent(x)
        return forward_ad.make_dual(y, change if tangent is None else change + tangent)

    def output_tangent(self, x: Tensor) -> Tensor | None:
        """The tangent of the plain output, from that of x; None where x has none."""
        tangent = tangent_of(x)
        return None if tangent is None else self.product(tangent, self.weight, None)

    def fold(self, d: Tensor) -> None:
        """Become the plain layer that gives the same outputs at d, shape (n,)."""
        with torch.no_grad():
            for first, second, scale in self.responding_parameters():
                first += scale @ d if second is None else self.by_unit(scale @ d, second) * second
        self.become_plain()

    def responding_parameters(self) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """W0, W1 and Q of each parameter that responds as `W0 + (Q d) * W1`, by output unit.

        W1 is None for a number a unit, `b0 + Q d`. They belong together by name: `weight_ih_l0`,
        `response_weight_ih_l0` and `response_scale_ih_l0`; `bias` and `response_shift`, of recurrent layers
        `bias_ih_l0` and `response_shift_l0`.

        Raises:
            TypeError: a parameter of the response belongs to nothing by its name.
        """
        own = {name: p for name, p in self._parameters.items() if p is not None}
        left = {name for name in own if name.startswith("response_")}
        for name, first in own.items():
            suffix = name.removeprefix("weight").removeprefix("bias")
            second, scale = f"response_weight{suffix}", f"response_scale{suffix}"
            if name.startswith("weight") and scale in own:
                left -= {second, scale}
                yield first, own.get(second), own[scale]
            shift = f"response_shift{suffix.replace('_ih', '')}"
            if name.startswith("bias") and shift in own:
                left.remove(shift)
                yield first, None, own[shift]
        if left:
            names = ", ".join(sorted(left))
            raise TypeError(
                f"revtune cannot tell what {names} of {type(self).__name__} belong to by their names; "
                "a weight that pruning or a parametrization is to compute is made so before self_tuning"
            )

    def become_plain(self) -> None:
        """Become the plain layer again, which it is where all responses are zero."""
        for name in self.added:
            del self._parameters[name]
        self._modules.pop("hyperparameters", None)  # one layer of a network has them as a child: see `self_tuning`
        for name in ("_warned", "rows"):
            self.__dict__.pop(name, None)
        del self._hypers, self._name, self.batch_dim
        self.__class__ = self.plain

    def by_unit(self, scale: Tensor, weight: Tensor) -> Tensor:
        """Scalars (U,), shaped to broadcast over a weight."""
        return scale.reshape(-1, *[1] * (weight.dim() - 1 - self.weight_unit_dim))

    def by_row(self, weight: Tensor) -> Tensor:
        """A weight as a matrix, whose dimension `weight_unit_dim` is units."""
        return weight.flatten(1)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        own = {name: value for name in self.added if (value := self._parameters[name]) is not None}
        if not any(prefix + name in state for name in own):  # a plain layer's weights: W1 stays, Q becomes 0
            has_weights = any(prefix + name in state for name in self._parameters)
            for name, value in own.items():
                is_q = name.startswith(ADDED[1:])
                state[prefix + name] = torch.zeros_like(value) if has_weights and is_q else value
        super()._load_from_state_dict(state, prefix, *rest)
        if self.hypers.witness is not None:
            self.hypers.witness.note()
