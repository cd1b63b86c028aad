"""Responses of layers of one's own, which compute by their own forward with other weights."""

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


CLOSE = 1e-3
"""How far, as a share of the largest output, a layer may be from linear: single precision, and products reordered."""


class ResponseOwn(Responding):
    """A registered layer with a response."""

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """As in `Responding`."""
        own, names = module._parameters, {name for name in vars(Responding) if not name.startswith("__")}
        if own.get("weight") is None or not hasattr(module, "bias"):
            return "a registered layer must have a parameter weight, and a parameter bias or None"
        if taken := names & {*vars(module), *vars(type(module))} - {"weight", "bias", "forward"}:
            return f"its {min(taken)} has a name that responses use"
        return super().refuses(module)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As in `Responding`."""
        own = self._parameters
        self._parameters = {**own, "weight": weight, "bias": bias}  # type: ignore[dict-item]
        try:
            found: Tensor = self.plain.forward(self, x)
        finally:
            self._parameters = own
        return found

    def carry(self, x: Tensor) -> Tensor | None:
        """As in `Responding`, by differentiating: in its input the layer need not be linear."""
        if tangent_of(x) is None:
            return None
        found: Tensor | None = forward_ad.unpack_dual(self.base(x)).tangent
        return found

    def change(self, x: Tensor, y: Tensor, d: Tensor) -> Change:
        """As in `Responding`; the first time it is checked that the layer is linear, unit by unit."""
        if not self.__dict__.get("_linear"):
            self._check(x.detach(), y.detach())
            self.__dict__["_linear"] = True
        return super().change(x, y, d)

    def drop(self) -> None:
        """As in `Responding`."""
        self.__dict__.pop("_linear", None)
        super().drop()

    @torch.no_grad()
    def _check(self, x: Tensor, y: Tensor) -> None:
        """Compare a response with what it folds into, at scalars of this check's own."""
        scale, shift = (torch.linspace(low, 1.0, self.units()).to(self.weight) for low in (0.5, -1.0))
        bias = None if self.bias is None else self.bias + shift
        folded = self.product(x, self.weight + self.by_unit(scale, self.weight) * self.response_weight, bias)
        wanted = y + self.along(scale[None], y) * self.scaled_by(x)
        wanted = wanted if bias is None else wanted + self.along(shift[None], y)
        if folded.shape != wanted.shape or (folded - wanted).abs().max() > CLOSE * folded.abs().max():
            raise ValueError(
                f"{self._name}: a registered layer must be linear in weight and bias together, with units in dimension "
                f"0 of its weight and {self.unit_dim} of its output, as register_response was told; "
                f"{self.plain.__name__} is not"
            )


def register_response(layer: type[nn.Module], *, unit_dim: int = -1) -> type[nn.Module]:
    """Let `self_tuning` convert a layer class of one's own.

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
    told = f"{layer.__name__} with a response."
    members: dict[str, Any] = {
        "plain": layer, "unit_dim": unit_dim, "__doc__": told, "__module__": layer.__module__
    }  # fmt: skip
    LAYERS[layer] = type(f"Response{layer.__name__}", (ResponseOwn, layer), members)
    return layer
