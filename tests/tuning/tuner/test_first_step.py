"""What a first training step finds out: each is told once, by the module's name, and ordinary networks hear nothing."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.tuning.hypers.hyperparameters import Pass
from revtune.tuning.tuner.tuner import Tuner

methods = pytest.mark.parametrize("method", ["delta", "stn"])


class Attention(nn.Module):
    """It hands its dropout's rate on, as BERT, GPT-2 and ViT do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.drop, self.out, self.seen = nn.Linear(8, 24), nn.Dropout(0.1), nn.Linear(8, 3), 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.drop.p)

    def attend(self, x: Tensor, rate: float) -> Tensor:
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        self.seen = rate
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=rate if self.training else 0.0)
        return self.out(y[:, 0].mean(1))


class Hidden(Attention):
    """Its source does not show that it reads the rate."""

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, getattr(self.drop, "p"))  # noqa: B009


class DropsRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * kept_rows(x) if self.training else x


def kept_rows(x: Tensor) -> Tensor:
    return x.new_empty(len(x), 1).bernoulli_(0.9)


class DropsByHyper(nn.Module):
    def __init__(self, hypers: rt.Hyperparameters) -> None:
        super().__init__()
        self.rates = (hypers,)

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) > torch.as_tensor(self.rates[0]["own"])[:, None]) if self.training else x


def cross_entropy(out: Tensor, batch: Any, h: Any = None) -> Tensor:
    return F.cross_entropy(out, batch[1], reduction="none")


def tuner_of(net: nn.Module, method: Any, loss: Any = cross_entropy, **settings: Any) -> Tuner:
    return Tuner(net, loss, lambda out, batch: loss(out, batch, None).mean(), method=method,
                 optimizer=lambda groups: torch.optim.SGD(groups, 0.1), **{"ratio": 1, **settings})  # fmt: skip


def sequences() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 4, 8), torch.randint(3, (6,))


def rows() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 8), torch.randint(3, (6,))


def frozen_rate(net: nn.Module) -> float:
    plain: Any = rt.frozen(net)
    return float(plain.drop.p)


def told(tuner: Tuner, batch: Any, steps: int = 1) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            tuner.step(batch, batch)
    return [str(warning.message) for warning in caught]


# Rates that are read as numbers


@methods
def test_a_rate_that_is_read_as_a_number_is_that_of_the_batch(method: str) -> None:
    torch.manual_seed(0)
    net: Any = rt.self_tuning(Attention())
    assert "one for the whole batch, as Attention reads it as a number" in net.conversion.replaced["drop"]
    assert net.conversion.left == {} and rt.dropout_rates(Attention())["drop"].per == "batch"
    tuner = tuner_of(net, method, hyper_optimizer=lambda groups: torch.optim.Adam(groups, 0.1))
    assert told(tuner, sequences(), 3) == [] and tuner.values()["drop"] != 0.1
    with net.hypers.bound(training_pass(raw := net.hypers.perturbed(6).detach())):
        net(sequences()[0])
        assert net.seen == pytest.approx(torch.sigmoid(raw[0, 0]).item())  # what acts is the batch's perturbed value
    plain: Any = rt.frozen(net)
    assert plain.drop.p == net.drop.p == tuner.values()["drop"] and "read_as_number" not in vars(plain.drop)


def training_pass(raw: Tensor) -> Any:
    return Pass(len(raw), None, raw)


def test_a_rate_of_each_example_is_left_where_a_forward_reads_a_number() -> None:
    with pytest.warns(
        UserWarning, match=r"drop: the forward of Attention reads its rate as a number, .* Rate\(0.1, per="
    ):
        net: Any = rt.self_tuning(Attention(), rt.Hyperparameters(drop=rt.Rate(0.4)))
    assert "it stays 0.1" in net.conversion.left["drop"] and type(net.drop) is nn.Dropout
    batch: Any = rt.self_tuning(Attention(), rt.Hyperparameters(drop=rt.Rate(0.4, per="batch")))
    assert batch.drop.p == pytest.approx(0.4)


@methods
def test_a_number_that_no_source_shows_is_the_current_value_and_rests(method: str) -> None:
    net: Any = rt.self_tuning(Hidden())
    assert "its rate tuned" in net.conversion.replaced["drop"]
    tuner = tuner_of(net, method)
    first, second = told(tuner, sequences(), 2)
    assert (
        first.startswith("drop: it is never called and its rate is read as a number") and "the number is 0.1" in first
    )
    assert second.startswith("nobody read hyperparameter 'drop'") and tuner.unread == ["drop"]
    assert "drop" in net.conversion.left and "drop" not in net.conversion.replaced
    assert tuner.values()["drop"] == frozen_rate(net) == net.seen == pytest.approx(0.1)


@methods
def test_to_ask_for_a_rate_is_not_to_use_it(method: str) -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.drop, self.last = nn.Linear(8, 8), nn.Dropout(0.0), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            if self.drop.p > 0:
                y = self.drop(y)
            return self.last(y)

    net: Any = rt.self_tuning(Asking())
    assert net.hypers.spec("drop").per == "example" and "it was 0, and starts at 0.05" in str(net.conversion)
    tuner = tuner_of(net, method)
    assert told(tuner, rows()) == [] and tuner.unread == []


# Hyperparameters that nobody reads


@methods
def test_what_nobody_reads_rests_with_its_scale(method: str) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    hypers = rt.Hyperparameters(ghost=rt.Rate(0.3), **rt.dropout_rates(net))
    tuner = tuner_of(rt.self_tuning(net, hypers), method, entropy=0.1)
    before = hypers.values(), hypers.scales()
    assert tuner.unread == []
    assert "so nothing tunes it and it stays" in told(tuner, rows(), 4)[0]
    assert tuner.unread == ["ghost"] and tuner.values()["ghost"] == before[0]["ghost"]
    assert hypers.scales()["ghost"] == before[1]["ghost"] and tuner.values()["2"] != before[0]["2"]
    state = tuner.state_dict()
    other = tuner_of(net, method, entropy=0.1)
    other.load_state_dict(state)
    assert other.unread == ["ghost"]
    older = {key: value for key, value in state.items() if key != "read"}
    other.load_state_dict(older)
    assert other.unread == []  # an older state does not say, and goes on as it did


# Random draws


@methods
def test_draws_that_nothing_tunes_are_named(method: str) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), DropsRows(), nn.Linear(8, 3))
    tuner = tuner_of(rt.self_tuning(net), method)
    (sentence,) = told(tuner, rows(), 2)
    assert sentence.startswith(
        "2: DropsRows draws random numbers by bernoulli_ in training, at a strength that nothing"
    )
    conversion: Any = tuner.model.conversion
    assert "bernoulli_" in conversion.left["2"]


@methods
def test_draws_at_a_strength_that_is_read_are_tuned(method: str) -> None:
    hypers = rt.Hyperparameters(own=rt.Rate(0.2), **{"2": rt.Rate(0.1)})
    noise = rt.TunedNoise(hypers, 0.1)
    net = nn.Sequential(nn.Linear(8, 8), noise, nn.Dropout(), DropsByHyper(hypers), nn.Linear(8, 3))
    tuner = tuner_of(rt.self_tuning(net, hypers), method)
    assert not any("draws" in sentence for sentence in told(tuner, rows()))


def test_a_net_that_drops_by_a_function_alone_is_told_the_two_lines() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.dropout(self.first(x), 0.5, self.training))

    lines = r"self\.drop = nn\.Dropout\(0\.1\) in __init__ and x = self\.drop\(x\) in forward"
    with pytest.raises(ValueError, match=rf"no nn\.Dropout to tune; .* it calls dropout as a function, .*{lines}"):
        rt.self_tuning(Functional())


@methods
def test_draws_of_a_later_branch_are_named_at_a_later_step(method: str) -> None:
    class Late(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += self.training
            return x * kept_rows(x) if self.training and self.calls > 8 else x

    tuner = tuner_of(rt.self_tuning(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), Late(), nn.Linear(8, 3))), method)
    (sentence,) = told(tuner, rows(), 12)
    assert sentence.startswith("2: Late draws random numbers by bernoulli_") and told(tuner, rows(), 2) == []


# Layers past whose response something goes


@methods
def test_a_layer_whose_weight_is_read_in_the_loss_is_named(method: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.drop, self.head = nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 3)
            self.spare = nn.Linear(8, 2)  # neither called nor read: nothing learns, and nothing is said

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.body(x))

    net: Any = rt.self_tuning(Model())

    def loss(out: Tensor, batch: Any, h: Any = None) -> Tensor:
        return F.cross_entropy(F.linear(out, net.head.weight, net.head.bias), batch[1], reduction="none")

    (sentence,) = told(tuner_of(net, method, loss), rows(), 2)
    assert sentence.startswith("head: its weight has a gradient and its response has none")
    assert "head" in net.conversion.left and "spare" in net.conversion.replaced


@methods
def test_the_response_of_a_frozen_weight_rests(method: str) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    for name, parameter in net.named_parameters():
        parameter.requires_grad = name.endswith("bias")
    tuned: Any = rt.self_tuning(net)
    layer = tuned[0]
    tuner = tuner_of(net, method)
    assert told(tuner, rows(), 4) == []
    assert not layer.response_scale.any() and layer.response_shift.any()
    layer.weight.requires_grad_(True)  # as gradual unfreezing does
    told(tuner, rows(), 3)
    assert layer.response_scale.any()


def test_frozen_hyperparameters_are_refused() -> None:
    net: Any = rt.self_tuning(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 3)))
    net[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"require no gradient: .* net\.hypers\.requires_grad_\(True\) lets them"):
        tuner_of(net, "delta")
    net.hypers.requires_grad_(True)
    tuner = tuner_of(net, "delta")
    tuner.step(rows(), rows())
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="the hyperparameters require no gradient"):
        tuner.valid_step(rows())
