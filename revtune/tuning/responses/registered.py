"""Which layer classes have a response: torch's own, and those that users register.

A registered layer computes by its own forward, with other weights in the place of its own.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.responses.embedding_bags import ResponseEmbeddingBag
from revtune.tuning.responses.layers import (
    ResponseConv1d,
    ResponseConv2d,
    ResponseConv3d,
    ResponseConvTranspose1d,
    ResponseConvTranspose2d,
    ResponseConvTranspose3d,
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
    ResponseRMSNorm,
)
from revtune.tuning.responses.recurrent import ResponseGRU, ResponseLSTM, ResponseRNN
from revtune.tuning.responses.recurrent_cells import ResponseGRUCell, ResponseLSTMCell, ResponseRNNCell
from revtune.tuning.responses.responding import Responding

LAYERS: dict[type[nn.Module], type[Responding]] = {
    kind.plain: kind
    for kind in (
        ResponseLinear, ResponseConv1d, ResponseConv2d, ResponseConv3d, ResponseConvTranspose1d,
        ResponseConvTranspose2d, ResponseConvTranspose3d, ResponseEmbedding, ResponseLayerNorm, ResponseRMSNorm,
        ResponseGroupNorm, ResponseBatchNorm1d, ResponseBatchNorm2d, ResponseBatchNorm3d, ResponseLSTM, ResponseGRU,
        ResponseRNN, ResponseLSTMCell, ResponseGRUCell, ResponseRNNCell, ResponseEmbeddingBag,
    )
}  # fmt: skip
"""The response class of each plain class; `register_response` adds to it."""

_SUBCLASSES: dict[type[nn.Module], type[Responding]] = {}
"""What `_of_subclass` has made, so that all layers of a class become one class."""

BESIDES = {"reset_parameters", "extra_repr", "from_pretrained"}
"""What a subclass may do otherwise than torch's class and still compute the same, beside dunders such as __init__."""

CALLS = {"__call__", "_call_impl", "__getattr__", "__getattribute__"}

TAKEN = {"batch_dim", "_hypers", "_name", "_warned"}
"""Attributes that layers are given when they adopt a response."""

CLOSE = 1e-3
"""How far a layer may be from linear, as a share of its largest output: rounding in float32, in another order."""


def register_response(layer: type[nn.Module], *, unit_dim: int = -1) -> type[nn.Module]:
    """Let `self_tuning` convert a layer class of your own.

    Its forward must take one tensor and be linear in its parameters `weight`, whose first dimension is output units,
    and `bias` (or None) together, as a linear map or a convolution is; that is checked in the first step. A matrix may
    have its units in columns, as Hugging Face's Conv1D has. Of its input a layer may be any function that can be
    differentiated.

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


def response_class(layer: type[nn.Module]) -> type[Responding] | None:
    """The response class of a plain class: its own, or one for a subclass that computes as torch's class does."""
    if layer in LAYERS:
        return LAYERS[layer]
    base = next((base for base in layer.__mro__ if base in LAYERS), None)
    if base is None or issubclass(LAYERS[base], ResponseRegistered):
        return None
    return None if changed_by(layer, base) else _of_subclass(layer, LAYERS[base])


def changed_by(layer: type[nn.Module], base: type[nn.Module]) -> str | None:
    """The first method by which a class computes otherwise than one of torch's that it is a subclass of, if any."""
    classes = base.__mro__[: base.__mro__.index(nn.Module)]
    methods = {name for own in classes for name in vars(own) if not name.startswith("__")} - BESIDES | CALLS
    own = inspect.getattr_static
    return next((m for m in sorted(methods) if own(layer, m, None) is not own(base, m, None)), None)


def registrable(layer: nn.Module) -> bool:
    """Whether `register_response` may take a layer, as far as it can be told without running it."""
    if layer._parameters.get("weight") is None or not hasattr(layer, "bias"):
        return False
    asked = [p for p in inspect.signature(layer.forward).parameters.values() if p.default is p.empty]
    return len(asked) == 1 and asked[0].kind in (asked[0].POSITIONAL_ONLY, asked[0].POSITIONAL_OR_KEYWORD)


def _of_subclass(layer: type[nn.Module], kind: type[Responding]) -> type[Responding]:
    if layer not in _SUBCLASSES:
        members = {"plain": layer, "__doc__": f"{layer.__name__} with a response.", "__module__": layer.__module__}
        _SUBCLASSES[layer] = type(f"Response{layer.__name__}", (ResponseOfSubclass, kind, layer), members)
    return _SUBCLASSES[layer]


def _taken(kind: type[Responding], module: nn.Module) -> str | None:
    """Why a layer of somebody else's class cannot respond, where it uses a name that responses use."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("revtune.")]
    reserved = TAKEN | {name for base in ours for name in vars(base) if not name.startswith("__")}
    foreign = [base for base in type(module).__mro__ if not base.__module__.startswith("torch.nn.modules.")]
    own = {name for base in foreign for name in vars(base)} | {*vars(module)}
    taken = (reserved & own) - {"weight", "bias", "forward", "_abc_impl"}
    return f"its {min(taken)} has a name that responses use" if taken else None


class ResponseOfSubclass(Responding):
    """A layer of a class that was made of one of torch's and computes as that does, with a response."""

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """Why a layer cannot respond; None if it can."""
        return super().refuses(module) or _taken(cls, module)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy or a saved network makes its class anew, as no module holds that by name."""
        return _blank, (self.plain,), self.__getstate__()


def _blank(plain: type[nn.Module]) -> nn.Module:
    kind = response_class(plain)
    assert kind is not None
    return kind.__new__(kind)


class ResponseRegistered(Responding):
    """A registered layer with a response."""

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """Why a layer cannot respond; None if it can."""
        if module._parameters.get("weight") is None or not hasattr(module, "bias"):
            return "a registered layer must have a parameter weight, and a parameter bias or None"
        return _taken(cls, module) or super().refuses(module)

    def adopt(self, hypers: Hyperparameters, name: str, batch_dim: int) -> None:
        """Take up the parameters of the response; a matrix may have units in either dimension."""
        if self.weight.dim() == 2 and self._units_are_columns():
            self.__dict__["weight_unit_dim"] = 1
        super().adopt(hypers, name, batch_dim)

    def _units_are_columns(self) -> bool:
        """Whether the weight is (I, U), as of Hugging Face's Conv1D; of a square one the layer itself tells."""
        rows, columns = self.weight.shape
        if rows != columns:
            return self.bias is not None and tuple(self.bias.shape) == (columns,)
        changed = self.weight.detach().clone()
        changed[0] += 1
        x = self.weight.new_ones(2, rows)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                moved = self.product(x, changed, self.bias) != self.product(x, self.weight, self.bias)
        except Exception:  # it takes another input; what is wrong then is told by the check of the first step
            return False
        return bool(moved[:, 1:].any()) if moved.dim() == 2 else False

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the plain layer's forward gives with this weight and bias in the place of its own."""
        own = self._parameters
        self._parameters = {**own, "weight": weight, "bias": bias}  # type: ignore[dict-item]
        try:
            y: Tensor = self.plain.forward(self, x)
        finally:
            self._parameters = own
        return y

    def shared_by_all(self, x: Tensor, size: int) -> bool:
        """Whether an input is one row for all examples; a vector may be a number for each."""
        return x.dim() > 1 and super().shared_by_all(x, size)

    def response_product(self, x: Tensor) -> Tensor:
        """W1 x, which the response scales; a bias is 0 there and not None, as a layer with one may need a tensor."""
        return self.product(x, self.response_weight, None if self.bias is None else torch.zeros_like(self.bias))

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
        for name in ("_linear", "weight_unit_dim"):
            self.__dict__.pop(name, None)
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
                f"{self.weight_unit_dim} of its weight and {self.unit_dim} of its output, as register_response was "
                f"told; {self.plain.__name__} is not"
            )
