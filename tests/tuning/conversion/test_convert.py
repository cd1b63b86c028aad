"""Conversion: what is tuned, what is left alone and why, and the plain network that comes out."""

import copy
import io
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.tuning.conversion.convert import dropout_rates, self_tuning
from revtune.tuning.conversion.freeze import frozen
from revtune.tuning.hypers.hyperparameters import Hyperparameters, Pass
from revtune.tuning.hypers.kinds import Positive, Rate
from revtune.tuning.regularizers.dropouts import TunedLockedDropout, TunedNoise
from revtune.tuning.regularizers.weights import TunedWeightDrop
from revtune.tuning.responses.responding import Responding
from revtune.tuning.tuner.tuner import Tuner
from tests.tuned_nets import Tied, pictures, with_responses


class Functional(nn.Module):
    """Dropout as a function, and a weight that is read past its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.scale = nn.Linear(4, 4), nn.Dropout(0.2), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(F.dropout(self.first(x), 0.5)) * self.scale


class Reading(nn.Module):
    """Reads its layer's weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(4, 4), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.drop(x), self.first.weight)


def test_every_dropout_becomes_a_rate_named_after_its_module() -> None:
    net: Any = self_tuning(pictures())
    assert net.hypers.values() == {"4": 0.1, "8": 0.05}
    told = str(net.conversion)
    assert "4: Dropout2d, its rate tuned" in told
    assert "8: Dropout, its rate tuned (it was 0, and starts at 0.05)" in told
    assert sum(isinstance(module, Responding) for module in net.modules()) == 4


def test_the_network_computes_what_it_did_and_keeps_its_names_and_weights() -> None:
    plain, x = pictures().eval(), torch.randn(5, 3, 8, 8)
    net = self_tuning(copy.deepcopy(plain))
    assert torch.equal(net(x), plain(x))
    names = [name for name, _ in net.named_parameters()]
    assert all(name in names for name, _ in plain.named_parameters())
    trained = {name: value + 1 for name, value in plain.state_dict().items()}
    net.load_state_dict(trained)
    plain.load_state_dict(trained)
    assert torch.equal(net(x), plain(x))


def test_tuned_weights_and_values_are_saved_and_loaded_without_unpickling() -> None:
    nets: list[Any] = [with_responses(self_tuning(pictures()), seed) for seed in (1, 2)]
    net, other = nets
    with torch.no_grad():
        net.hypers.raw.add_(1)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.hypers.values() == net.hypers.values()
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(net.eval()(x), other.eval()(x))


def test_a_dropout_is_tuned_by_the_hyperparameter_of_its_name() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleDict({"fc": nn.Linear(3, 3), "drop": nn.Dropout(0.5)})
            self.other = nn.Dropout(0.4)

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.body["drop"](self.body["fc"](x)))

    hypers = Hyperparameters(drop=Rate(0.1), decay=Positive(0.1))
    net: Any = self_tuning(Net(), hypers)
    assert net.hypers is hypers and net.conversion.left == {
        "other": "no hyperparameter is named after it; its rate stays 0.4"
    }
    with hypers.bound(Pass(200, None, torch.full((200, 2), 20.0))):
        assert not net.body["drop"](torch.ones(200, 3)).any() and net.other(torch.ones(200, 3)).any()


def test_what_is_left_alone_is_named_with_its_reason() -> None:
    mixed = nn.ModuleDict({
        "tied": Tied(), "functional": Functional(), "reading": Reading(), "odd": nn.Bilinear(2, 2, 2),
        "attention": nn.TransformerEncoderLayer(4, 2, 8), "alpha": nn.AlphaDropout(0.3),
        "clipped": nn.Embedding(3, 3, max_norm=1.0), "whole": nn.LayerNorm((3, 3)),
        "bare": nn.BatchNorm1d(3, affine=False),
    })  # fmt: skip
    with pytest.warns(UserWarning) as warned:
        net: Any = self_tuning(mixed)
    told = [str(one.message).partition(":")[0] for one in warned]
    assert told == ["functional", "odd", "attention"]
    left = net.conversion.left
    assert left["tied.readout"] == "its weight is tied to another module's"
    assert left["attention"] == "TransformerEncoderLayer reads the weights of its layers directly"
    assert "Bilinear has no response, so its 10 weights are trained as they are" in left["odd"]
    assert "AlphaDropout has no tuned form; its rate stays 0.3" in left["alpha"]
    assert left["clipped"] == "max_norm changes its weights in place"
    assert left["whole"] == "it normalises over more than one dimension" and left["bare"] == "it has no affine weights"
    assert "its 4 weights" in left["functional"]
    assert left["reading.first"] == "the forward of Reading reads its weights directly" and "reading" not in left
    assert left["attention.self_attn"] == "the dropout of its weights stays 0.1"
    inside = {name for name in net.conversion.replaced if name.startswith("attention.")}
    assert inside == {f"attention.{name}" for name in ("dropout", "dropout1", "dropout2")}


def test_modules_are_left_alone_on_request() -> None:
    net: Any = self_tuning(pictures(), leave=["0", "8"])
    assert net.conversion.left == dict.fromkeys(("0", "8"), "it was to be left alone")
    assert type(net[0]) is nn.Conv2d and net.hypers.names == ("4",)


class Fourier(nn.Module):
    """A filter of complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=x.shape[-1])


LEFT: dict[str, Any] = {
    "complex": Fourier,
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Tanh())),
    "lazy": lambda: nn.LazyLinear(6),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", LEFT)
@pytest.mark.parametrize("method", ["delta", "stn"])
def test_what_is_left_alone_may_be_of_any_kind(kind: str, method: Any) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 6), torch.arange(8) % 3
    plain = nn.Sequential(LEFT[kind](), nn.Linear(6, 6), nn.Dropout(0.1), nn.Linear(6, 3))
    with pytest.raises(ValueError):
        self_tuning(plain)
    net: Any = self_tuning(plain, leave=["0"])
    assert net.hypers.raw.dtype == torch.float32
    tuner = Tuner(
        net, lambda out, batch, h: F.cross_entropy(out, batch[1], reduction="none"),
        lambda out, batch: F.cross_entropy(out, batch[1]), optimizer=lambda groups: torch.optim.SGD(groups, 0.5),
        method=method, clip=10.0,
    )  # fmt: skip
    tuner.train_step((x, y))
    before = [p.detach().clone() for p in net[0].parameters()]
    tuner.step((x, y), (x, y))
    assert not any(map(torch.equal, before, net[0].parameters()))
    tuner.load_state_dict(tuner.state_dict())
    torch.testing.assert_close(frozen(net).eval()(x), net.eval()(x))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("method", ["delta", "stn"])
def test_compiled_code_between_layers_that_respond_is_as_the_code_it_was_made_of(method: Any) -> None:
    """Its tangents too, from the third run on, in which torch.jit has specialised it."""
    ends, x, y = [], torch.randn(8, 6), torch.arange(8) % 3
    for compiled in (True, False):
        torch.manual_seed(0)
        part: nn.Module = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        first, last = nn.Linear(6, 6), nn.Linear(6, 3)
        plain = nn.Sequential(first, torch.jit.script(part) if compiled else part, nn.Dropout(0.1), last)
        net = self_tuning(plain, leave=["1"])
        tuner = Tuner(
            net, lambda out, batch, h: F.cross_entropy(out, batch[1], reduction="none"),
            lambda out, batch: F.cross_entropy(out, batch[1]), optimizer=lambda groups: torch.optim.SGD(groups, 0.5),
            method=method, ratio=1,
        )  # fmt: skip
        for _ in range(5):
            tuner.step((x, y), (x, y))
        ends.append([p.detach() for p in net.parameters()])
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("centred", [True, False])
def test_a_weight_that_forward_reads_is_the_frozen_networks_too(centred: bool) -> None:
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.drop, self.out = nn.Embedding(9, 6), nn.Dropout(0.3), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.out(self.drop(self.words(x)))
            return found @ self.words.weight.t()

    net: Any = with_responses(self_tuning(ByHand()))
    net.hypers.centred = centred
    x = torch.randint(9, (5, 4))
    torch.testing.assert_close(frozen(net).eval()(x), net.eval()(x), atol=1e-5, rtol=1e-5)
    assert net.conversion.left == {"words": "the forward of ByHand reads its weights directly"}


@pytest.mark.parametrize("method", ["delta", "stn"])
def test_dropouts_inside_torchs_transformer_layers_are_tuned(method: Any) -> None:
    torch.manual_seed(0)
    body = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.2, batch_first=True), 1)
    with pytest.warns(UserWarning, match="TransformerEncoderLayer reads the weights"):
        net: Any = self_tuning(nn.Sequential(nn.Linear(4, 8), body, nn.Linear(8, 2)))
    assert list(net.hypers.values().values()) == [0.2] * 3
    x, y = torch.randn(6, 5, 4), torch.randint(2, (6,))
    tuner = Tuner(
        net, lambda out, batch, h: F.cross_entropy(out.mean(1), batch[1], reduction="none"),
        lambda out, batch: F.cross_entropy(out.mean(1), batch[1]), method=method,
        optimizer=lambda groups: torch.optim.SGD(groups, 0.1), ratio=1,
    )  # fmt: skip
    for _ in range(3):
        tuner.step((x, y), (x, y))
    assert all(value != 0.2 for value in tuner.values().values())
    torch.testing.assert_close(frozen(net).eval()(x), net.eval()(x), atol=1e-5, rtol=1e-5)


def test_dropout_as_a_function_is_named() -> None:
    class Net(Functional):
        def __init__(self) -> None:
            super().__init__()
            del self.scale
            self.scale = 1.0  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(F.dropout(self.first(x), 0.5))

    net: Any = self_tuning(Net())
    assert "calls dropout as a function" in net.conversion.left["the network itself"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_are_computed_do_not_respond(norm: Any) -> None:
    net: Any = self_tuning(nn.Sequential(norm(nn.Linear(4, 4)), nn.Dropout(0.1), nn.Linear(4, 2)))
    assert "its weight is no parameter of its own" in net.conversion.left["0"] and "2" in net.conversion.replaced


def test_time_first_layers_in_a_network_of_examples_first_are_told() -> None:
    def layers(**options: Any) -> nn.ModuleDict:
        return nn.ModuleDict({"lstm": nn.LSTM(6, 8, **options), "drop": nn.Dropout(0.1), "out": nn.Linear(8, 2)})

    with pytest.warns(UserWarning, match="lstm takes time first, and batch_dim=0 says"):
        self_tuning(layers())
    with pytest.warns(UserWarning, match="lstm takes examples first, and batch_dim=1 says"):
        self_tuning(layers(batch_first=True), batch_dim=1)
    self_tuning(layers(batch_first=True))
    self_tuning(layers(), batch_dim=1)


@pytest.mark.parametrize("kind", [TunedNoise, TunedLockedDropout])
def test_regularizers_of_another_first_dimension_are_told(kind: Any) -> None:
    hypers = Hyperparameters(rate=Rate(0.1))
    net = nn.Sequential(kind(hypers, "rate"), nn.Linear(4, 2))
    with pytest.warns(UserWarning, match="0 has batch_dim=0 and the network batch_dim=1; if its inputs"):
        self_tuning(net, hypers, batch_dim=1)
    self_tuning(nn.Sequential(kind(hypers, "rate", batch_dim=1), nn.Linear(4, 2)), hypers, batch_dim=1)


def test_frozen_layers_stay_as_they_are() -> None:
    plain = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Dropout(0.1), nn.Linear(3, 2))
    net: Any = self_tuning(plain)
    assert net.conversion.left["0"] == "its weights are frozen" and type(net[0]) is nn.Linear


def test_a_tuned_rate_between_layers_is_told() -> None:
    net: Any = self_tuning(nn.ModuleDict({"lstm": nn.LSTM(6, 8, 2, batch_first=True)}))
    assert net.conversion.replaced["lstm"] == "ResponseLSTM, its dropout tuned (it was 0, and starts at 0.05)"


@pytest.mark.parametrize(
    ("net", "told"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(1.0)), "1 cannot be tuned from where it is: Rate"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)).bfloat16(), "0.weight must be float32 or float64"),
        (nn.Sequential(nn.LazyLinear(2), nn.Dropout(0.1)), "0.weight has no shape yet"),
    ],
)
def test_networks_that_cannot_be_converted_are_told_by_the_module(net: nn.Module, told: str) -> None:
    with pytest.raises(ValueError) as refused:
        self_tuning(net)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: self_tuning(nn.Linear(2, 2)), "has no nn.Dropout to tune"),
        (lambda: self_tuning(nn.Sequential(nn.Dropout(0.1))), "no layer of the network can respond"),
        (lambda: self_tuning(nn.TransformerEncoderLayer(4, 2, 8)), "no layer of the network can respond"),
        (lambda: self_tuning(self_tuning(pictures())), "is self-tuning already"),
        (lambda: self_tuning(pictures(), batch_dim=2), "batch_dim must be 0 or 1, got 2"),
        (lambda: self_tuning(pictures(), leave=["body"]), "as net.named_modules() has them, got 'body'"),
        (lambda: self_tuning(pictures(), leave="0"), "leave must be a list of names, got the string '0'"),
    ],
)
def test_what_cannot_be_converted_is_refused(make: Any, told: str) -> None:
    with pytest.raises(ValueError) as refused:
        make()
    assert told in str(refused.value)


def test_a_refused_network_is_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError):
        self_tuning(net)
    assert type(net[0]) is nn.Linear and not hasattr(net, "hypers")


def test_names_that_self_tuning_needs_are_refused() -> None:
    net = nn.ModuleDict({"conversion": nn.Linear(2, 2), "drop": nn.Dropout(0.1)})
    with pytest.raises(ValueError, match="the network has a conversion of its own"):
        self_tuning(net)


def test_rates_of_all_dropouts_beside_others() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.LSTM(8, 8, 2, batch_first=True))
    hypers = Hyperparameters(decay=Positive(0.1), **dropout_rates(net))
    assert self_tuning(net, hypers).hypers.values() == {"decay": 0.1, "1": 0.2, "2.dropout": 0.05}  # type: ignore[operator]


def test_what_was_done_is_printed_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    self_tuning(pictures(), verbose=True)
    assert "replaced\n  0: ResponseConv2d\n" in capsys.readouterr().out


class Tagger(nn.Module):
    """A tagger of tokens (T, B), as someone else writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.drop = nn.Embedding(12, 8), nn.Dropout(0.1)
        self.rnn, self.tags = nn.LSTM(8, 10, num_layers=2, dropout=0.2), nn.Linear(10, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.tags(self.rnn(self.drop(self.words(tokens)))[0])
        return found


@pytest.mark.parametrize("method", ["delta", "stn"])
def test_a_tagger_is_tuned_with_the_dropout_between_its_lstms(method: Any) -> None:
    torch.manual_seed(0)
    plain = Tagger()
    net: Any = self_tuning(copy.deepcopy(plain), batch_dim=1)
    tokens = torch.randint(12, (7, 6))
    assert net.hypers.values() == {"drop": 0.1, "rnn.dropout": 0.2}
    assert torch.equal(net.eval()(tokens), plain.eval()(tokens))
    tuner = Tuner(
        net, lambda out, batch, h: F.cross_entropy(out.permute(1, 2, 0), batch[1].T, reduction="none").mean(1),
        lambda out, batch: F.cross_entropy(out.flatten(0, 1), batch[1].flatten()), method=method,
        optimizer=lambda params: torch.optim.Adam(params, 0.01),
    )  # fmt: skip
    losses = [tuner.step((tokens, tokens % 3), (tokens, tokens % 3))[0] for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    assert all(value != first for value, first in zip(net.hypers.values().values(), (0.1, 0.2), strict=True))
    torch.testing.assert_close(frozen(net).eval()(tokens), net.eval()(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["delta", "stn"])
@pytest.mark.parametrize("name", ["weight_drop", "rnn.weight_drop"])
def test_recurrent_weights_are_dropped_at_a_tuned_rate(method: Any, name: str) -> None:
    """The rate moves, in training weights are dropped by it, and a copy reads its own."""
    torch.manual_seed(0)
    net: Any = self_tuning(Tagger(), Hyperparameters(**{name: Rate(0.5, per="batch")}), batch_dim=1)
    assert "rnn: ResponseLSTM, its weight_drop tuned" in str(net.conversion)
    tokens = torch.randint(12, (7, 6))
    tuner = Tuner(
        net, lambda out, batch, h: F.cross_entropy(out.permute(1, 2, 0), batch[1].T, reduction="none").mean(1),
        lambda out, batch: F.cross_entropy(out.flatten(0, 1), batch[1].flatten()), method=method,
        optimizer=lambda params: torch.optim.Adam(params, 0.01),
    )  # fmt: skip
    for _ in range(6):
        tuner.step((tokens, tokens % 3), (tokens, tokens % 3))
    assert net.hypers.values()[name] != 0.5 and not net.hypers.read ^ {name}
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.hypers.raw.fill_(-40.0)
    x, same = torch.ones(7, 6, 8), []
    for one in (net.train(), other.train()):
        one.rnn.dropout = 0.0
        same.append(torch.equal(one.rnn(x)[0], one.rnn(x)[0]))
    assert same == [False, True]


def test_weight_drop_is_one_for_a_batch() -> None:
    with pytest.raises(ValueError, match="weight_drop"):
        self_tuning(Tagger(), Hyperparameters(weight_drop=Rate(0.5)), batch_dim=1)


def test_regularizers_of_ones_own_are_tuned_by_what_self_tuning_is_given() -> None:
    hypers = Hyperparameters(noise=Positive(0.1), words=Rate(0.2, per="batch"))
    layer = TunedWeightDrop(nn.Linear(4, 3), hypers, "words")
    net = nn.Sequential(TunedNoise(hypers, "noise"), nn.Linear(4, 4), layer)
    for other in (None, Hyperparameters(noise=Positive(0.1))):
        with pytest.raises(ValueError, match="0 reads other hyperparameters; give self_tuning the same"):
            self_tuning(net, other)
    self_tuning(net, hypers)
    x = torch.rand(5, 4)
    plain = frozen(net).eval()
    assert torch.allclose(plain(x), net.eval()(x))
    assert all(type(module).__module__.startswith("torch.nn") for module in plain.modules())
    assert list(plain.state_dict()) == ["1.weight", "1.bias", "2.module.weight", "2.module.bias"]


def test_a_dropout_cannot_be_tuned_by_what_is_no_rate() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))
    with pytest.raises(ValueError, match=r"1 must lie in 0\.\.1, but hyperparameter '1' is a Positive from 0 to inf"):
        self_tuning(net, Hyperparameters(**{"1": Positive(0.1)}))
    assert type(net[0]) is nn.Linear


def test_a_layer_whose_forward_was_replaced_before_is_left_and_told() -> None:
    """As accelerate's hooks and the patches of peft replace it; the class's forward would never be called."""
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 2))
    for place in (0, 1):  # a layer and a dropout
        net[place].forward = partial(type(net[place]).forward, net[place])
    with pytest.warns(UserWarning, match="its forward was replaced on the module itself before") as told:
        conversion: Any = self_tuning(net).conversion
    assert [str(warning.message)[:2] for warning in told] == ["0:", "1:"]
    assert set(conversion.left) == {"0", "1"} and "its rate stays 0.1" in conversion.left["1"]
    assert set(conversion.replaced) == {"2", "3", "4"} and type(net[0]) is nn.Linear
