"""Which layer classes have a response: torch's own, and those that users register.

A registered layer computes by its own forward, with other weights in the place of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from revtune.tuning.responses.layers import (
    ResponseConv1d,
    ResponseConv2d,
    ResponseConv3d,
    ResponseEmbedding,
    ResponseLinear,
)
from revtune.tuning.responses.linearized import Change, tangent_of
from revtune.tuning.responses.normalisation import (
    ResponseBatchNorm1d,
    ResponseBatchNorm2d,
    ResponseBatchNorm3d,
    ResponseGroupNorm,
    ResponseLayerNorm,
)
from revtune.tuning.responses.recurrent import ResponseGRU, ResponseLSTM
from revtune.tuning.responses.responding import Responding

LAYERS: dict[type[nn.Module], type[Responding]] = {
    kind.plain: kind
    for kind in (
        ResponseLinear, ResponseConv1d, ResponseConv2d, ResponseConv3d, ResponseEmbedding, ResponseLayerNorm,
        ResponseGroupNorm, ResponseBatchNorm1d, ResponseBatchNorm2d, ResponseBatchNorm3d, ResponseLSTM, ResponseGRU,
    )
}  # fmt: skip
"""The response class of each plain class; `register_response` adds to it."""

CLOSE = 1e-3
"""How far a layer may be from linear, as a share of its largest output: rounding in float32, in another order."""


def register_response(layer: type[nn.Module], *, unit_dim: int = -1) -> type[nn.Module]:
    """Let `self_tuning` convert a layer class of your own.

    Its forward must take one tensor and be linear in its parameters `weight`, whose first dimension is output units,
    and `bias` (or None) together, as a linear map or a convolution is; that is checked in the first step. Of its input
    it may be any function that can be differentiated.

    Args:
        layer: the class.
        unit_dim: which dimension of its output are units.

    Returns:
        The class itself, so that it can be used as a decorator.

    Raises:
        TypeError: it is no module class.

    Example:
        >>> @register_response
        ... class Halved(nn.Linear):
        ...     def forward(self, x): return F.linear(x, self.weight / 2, self.bias)
        >>> self_tuning(nn.Sequential(Halved(3, 2), nn.Dropout(0.1))).conversion.replaced["0"]
        'ResponseHalved'
    """
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise TypeError(f"register_response wants a subclass of nn.Module, got {layer!r}")
    members: dict[str, Any] = {
        "plain": layer, "unit_dim": unit_dim, "__doc__": f"{layer.__name__} with a response.",
        "__module__": layer.__module__,
    }  # fmt: skip
    LAYERS[layer] = type(f"Response{layer.__name__}", (ResponseRegistered, layer), members)
    return layer


class ResponseRegistered(Responding):
    """A registered layer with a response."""

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """Why a layer cannot respond; None if it can."""
        parameters, reserved = module._parameters, {name for name in vars(Responding) if not name.startswith("__")}
        if parameters.get("weight") is None or not hasattr(module, "bias"):
            return "a registered layer must have a parameter weight, and a parameter bias or None"
        if taken := reserved & {*vars(module), *vars(type(module))} - {"weight", "bias", "forward"}:
            return f"its {min(taken)} has a name that responses use"
        return super().refuses(module)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the plain layer's forward gives with this weight and bias in the place of its own."""
        own = self._parameters
        self._parameters = {**own, "weight": weight, "bias": bias}  # type: ignore[dict-item]
        try:
            y: Tensor = self.plain.forward(self, x)
        finally:
            self._parameters = own
        return y

    def output_tangent(self, x: Tensor) -> Tensor | None:
        """The tangent of the plain output, by forward mode: the layer need not be linear in its input."""
        if tangent_of(x) is None:
            return None
        tangent: Tensor | None = forward_ad.unpack_dual(self.base(x)).tangent
        return tangent

    def change(self, x: Tensor, y: Tensor, d: Tensor) -> Change:
        """What the response adds to the output y; the first time it is checked that the layer is linear."""
        if not self.__dict__.get("_linear"):
            self._check_linear(x.detach(), y.detach())
            self.__dict__["_linear"] = True
        return super().change(x, y, d)

    def become_plain(self) -> None:
        """Become the plain layer again."""
        self.__dict__.pop("_linear", None)
        super().become_plain()

    @torch.no_grad()
    def _check_linear(self, x: Tensor, y: Tensor) -> None:
        """Compare a response, at scalars that differ from unit to unit, with the plain layer that it folds into."""
        scale, shift = (torch.linspace(low, 1.0, self.units()).to(self.weight) for low in (0.5, -1.0))
        bias = None if self.bias is None else self.bias + shift
        folded = self.product(x, self.weight + self.by_unit(scale, self.weight) * self.response_weight, bias)
        expected = y + self.along(scale[None], y, x) * self.response_product(x)
        expected = expected if bias is None else expected + self.along(shift[None], y, x)
        if folded.shape != expected.shape or (folded - expected).abs().max() > CLOSE * folded.abs().max():
            raise ValueError(
                f"{self._name}: a registered layer must be linear in weight and bias together, with units in dimension "
                f"0 of its weight and {self.unit_dim} of its output, as register_response was told; "
                f"{self.plain.__name__} is not"
            )
