"""Layers of one's own respond once they are registered, if they are linear."""

import copy
import pickle
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
from revtune.tuning.responses.weight_norm import weight_norm2
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


class Scaled(nn.Linear):
    """Starts otherwise, computes the same."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.note = "mine"

    def reset_parameters(self) -> None:
        nn.init.eye_(self.weight)
        nn.init.zeros_(self.bias)


class Standardised(nn.Conv2d):
    """Computes with another weight than its own."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class Named(nn.Linear):
    """Uses a name that responses use."""

    def units(self) -> int:
        return 3


class Doubling(nn.GRUCell):
    """Computes otherwise than a cell."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return super().forward(2 * input, hx)


class Forgetful(nn.LSTM):
    """Computes otherwise than an LSTM."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
        return super().forward(input)


class Encoder(nn.LSTM):
    """Is made otherwise, computes the same."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, num_layers=2, dropout=0.3, batch_first=True)
        self.note = "mine"


class Gated(nn.GRU):
    """Is made otherwise, computes the same."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, batch_first=True)


@pytest.mark.parametrize("kind", [Encoder, Gated])
def test_a_subclass_of_a_recurrent_layer_responds(kind: Any) -> None:
    torch.manual_seed(0)
    net: Any = with_responses(self_tuning(nn.ModuleDict({"rnn": kind(4), "drop": nn.Dropout(0.1)})))
    layer, x, d = net["rnn"], torch.randn(5, 3, 4), torch.randn(5, len(net.hypers.names))
    assert net.conversion.replaced["rnn"].startswith(f"Response{kind.__name__}") and isinstance(layer, kind)
    assert ("rnn.dropout" in net.hypers.names) == (kind is Encoder)
    net.eval()
    with net.hypers.bound(Pass(5, d, None, training=False)):
        y = layer(x)[0]
    for row in range(5):
        alone: Any = copy.deepcopy(layer)
        alone.fold(d[row])
        assert type(alone) is kind
        torch.testing.assert_close(alone(x[row : row + 1])[0], y[row : row + 1])
    net.hypers.centred = False
    saved = pickle.loads(pickle.dumps(net))
    assert torch.equal(saved["rnn"](x)[0], layer(x)[0]) and saved["rnn"].hypers is saved.hypers
    torch.testing.assert_close(frozen(net).get_submodule("rnn")(x)[0], layer(x)[0])


def test_a_subclass_that_computes_the_same_responds() -> None:
    torch.manual_seed(0)
    net: Any = with_responses(self_tuning(nn.Sequential(Scaled(4), nn.Dropout(0.1), Grouped(1, 2, 3))))
    assert net.conversion.replaced["0"] == "ResponseScaled" and net.conversion.replaced["2"] == "ResponseGrouped"
    assert isinstance(net[0], Scaled) and net[0].note == "mine"
    x, d = torch.randn(5, 4), torch.randn(5, 1)
    with net.hypers.bound(Pass(5, d, None, training=False)):
        y = net[0](x)
    plain: Any = copy.deepcopy(net[0])
    plain.fold(d[2])
    assert type(plain) is Scaled
    torch.testing.assert_close(plain(x[2:3]), y[2:3])
    saved = pickle.loads(pickle.dumps(net))  # as torch.save does with a network as a whole
    assert torch.equal(saved.eval()(x[:, None]), net.eval()(x[:, None])) and saved[0].hypers is saved.hypers
    assert type(self_tuning(nn.Sequential(Scaled(4), nn.Dropout(0.1)))[0]) is type(net[0])  # type: ignore[index]


def test_a_subclass_that_does_not_respond_is_told_why() -> None:
    patched = nn.Linear(2, 2)
    patched.forward = lambda x: x  # type: ignore[assignment, method-assign]
    mixed = nn.ModuleDict({
        "linear": nn.Linear(2, 2), "drop": nn.Dropout(0.1), "other": Standardised(2, 2, 1), "own": Whitened(2, 2),
        "named": Named(2, 2), "patched": patched, "two": nn.Bilinear(2, 2, 2), "cell": Doubling(2, 2),
        "rnn": Forgetful(2, 2, batch_first=True),
    })  # fmt: skip
    with pytest.warns(UserWarning):
        net: Any = self_tuning(mixed)
    left = net.conversion.left
    assert left["other"].startswith("Standardised has no response as Conv2d has, as it has a _conv_forward of its own")
    assert left["own"].startswith("Whitened has no response as Linear has, as it has a forward of its own, so its 6")
    assert left["own"].endswith("; see register_response")
    assert left["named"] == "its units has a name that responses use"
    assert left["patched"].startswith("its forward was replaced on the module itself before the conversion")
    for name in ("cell", "two", "rnn"):  # which register_response cannot take
        assert left[name].endswith("are trained as they are")
    assert left["rnn"].startswith("Forgetful has no response as LSTM has, as it has a forward of its own")
    assert left["cell"].startswith("Doubling has no response as GRUCell has, as it has a forward of its own")


class Conv1D(nn.Module):
    """Hugging Face's, as GPT-2 has it: a linear layer whose weight is (inputs, units)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.empty(nx, nf)), nn.Parameter(torch.zeros(nf))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        out = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(out)


@pytest.mark.parametrize("inputs", [4, 6])
def test_a_weight_may_have_its_units_in_columns(inputs: int) -> None:
    register_response(Conv1D)
    torch.manual_seed(0)
    x, d = torch.randn(5, 3, inputs), torch.randn(5, 1)
    net = tuned(Conv1D(6, inputs), x)
    with net.hypers.bound(Pass(5, d, None, training=False)):
        y, norms = net[0](x), weight_norm2(net)
    for row in range(5):
        plain: Any = copy.deepcopy(net[0])
        plain.fold(d[row])
        torch.testing.assert_close(plain(x[row]), y[row])
        torch.testing.assert_close(weight_norm2(plain), norms[row])
    net.hypers.centred = False
    torch.testing.assert_close(frozen(net)(x), net(x))
