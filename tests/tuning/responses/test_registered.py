"""Layers of one's own respond once they are registered, if they are linear."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.tuning.conversion.convert import self_tuning
from revtune.tuning.conversion.freeze import frozen
from revtune.tuning.hypers.hyperparameters import Pass
from revtune.tuning.responses.registered import LAYERS, register_response
from tests.tuned_nets import with_responses


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    before = dict(LAYERS)
    yield
    LAYERS.clear()
    LAYERS.update(before)


def tuned(layer: nn.Module, x: Tensor) -> Any:
    """A network of it after a pass in which it answers."""
    net: Any = with_responses(self_tuning(nn.Sequential(layer, nn.Dropout(0.1))))
    with net.hypers.bound(Pass(len(x), torch.randn(len(x), 1), None, training=False)):
        net.eval()(x)
    return net


def test_ones_own_layer_responds_once_it_is_registered() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, 2 * self.weight, self.bias)

    try:
        register_response(Doubled)
        layer: Any = with_responses(self_tuning(nn.Sequential(Doubled(), nn.Dropout(0.1))))
    finally:
        LAYERS.pop(Doubled, None)
    x, d = torch.randn(5, 4), torch.randn(5, 1)
    with layer.hypers.bound(Pass(5, d, None, training=False)):
        y = layer.eval()(x)
    own = layer[0]
    second = F.linear(x, 2 * own.response_weight)
    wanted = F.linear(x, 2 * own.weight, own.bias) + (d @ own.response_scale.T) * second + d @ own.response_shift.T
    torch.testing.assert_close(y, wanted)
    with pytest.raises(TypeError, match="wants a subclass of nn.Module, got 3"):
        register_response(3)  # type: ignore[arg-type]


class Whitened(nn.Linear):
    """Not linear in its weight, which it standardises."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / self.weight.std(1, keepdim=True), self.bias)


class Upwards(nn.ConvTranspose2d):
    """Its weight has units in dimension 1."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return F.conv_transpose2d(x, self.weight, self.bias)


@pytest.mark.parametrize(
    ("layer", "x"), [(Whitened(4, 3), torch.randn(5, 4)), (Upwards(3, 3, 2), torch.randn(5, 3, 4, 4))]
)
def test_layers_that_are_not_linear_unit_by_unit_are_named(layer: nn.Module, x: Tensor) -> None:
    register_response(type(layer), unit_dim=1)
    with pytest.raises(ValueError, match=f"0: a registered layer must be linear .* {type(layer).__name__} is not"):
        tuned(layer, x)


class Grouped(nn.Conv1d):
    """A convolution under another name."""


def test_a_registered_convolution_is_frozen_into_the_same_function() -> None:
    register_response(Grouped, unit_dim=1)
    x = torch.randn(5, 4, 7)
    net = tuned(Grouped(4, 6, 3, groups=2), x)
    net.hypers.centred = False
    torch.testing.assert_close(frozen(net)(x), net(x), atol=1e-5, rtol=1e-5)


class Unweighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.units = 3
        self.weight, self.bias = nn.Parameter(torch.ones(3)), None


def test_what_a_registered_layer_lacks_is_named_and_nothing_is_converted() -> None:
    for layer, told in ((nn.Bilinear(2, 2, 2), None), (nn.ReLU(), "must have a parameter weight")):
        register_response(type(layer))
        net = nn.Sequential(nn.Linear(2, 2), layer, nn.Dropout(0.1))
        if told:
            with pytest.raises(ValueError, match=f"1, a ReLU, cannot respond: a registered layer {told}"):
                self_tuning(net)
            assert type(net[0]) is nn.Linear
    register_response(Unweighted)
    with pytest.raises(ValueError, match="0, a Unweighted, cannot respond: its units has a name that responses use"):
        self_tuning(nn.Sequential(Unweighted(), nn.Dropout(0.1)))
