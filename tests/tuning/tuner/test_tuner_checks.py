"""What a tuner cannot work with is named, before anything has changed."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revtune as rt
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Hyper
from tests.small_tuner import BATCH, everything, net, train_loss, tuner

METHODS = pytest.mark.parametrize("method", ["delta", "stn"])


def test_responses_learnt_by_the_other_method_are_refused() -> None:
    model = net()
    tuner(model, method="stn").train_step(BATCH)
    with pytest.raises(ValueError, match='responses were learnt by method="stn", so it must'):
        tuner(model, method="delta")
    tuner(model, method="stn")
    of = tuner(method="delta")
    of.model.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match='now holds responses that were learnt by method="stn"; this'):
        of.train_step(BATCH)


def test_responses_that_count_from_elsewhere_are_refused() -> None:
    of = tuner(method="stn", centred=True)
    of.train_step(BATCH)
    with pytest.raises(ValueError, match='by method="delta", or "stn" with centred=True, so it must be that again'):
        tuner(of.model, method="stn")
    with pytest.raises(ValueError, match='was learnt by method="delta", or "stn" with centred=True, this tuner'):
        tuner(method="stn").load_state_dict(of.state_dict())
    again = tuner(method="stn", centred=True)
    again.load_state_dict(of.state_dict())
    assert all(map(torch.equal, everything(again), everything(of)))
    with pytest.raises(ValueError, match="centred must not be False"):
        tuner(method="delta", centred=False)
    with pytest.raises(TypeError, match="centred must be True, False or None, got 'yes'"):
        tuner(method="stn", centred="yes")


def test_centred_responses_move_nothing_where_hyperparameters_stand() -> None:
    """What is trained there is the network itself, so that it is folded without a change."""
    of = tuner(method="stn", centred=True)
    for _ in range(3):
        of.train_step(BATCH)
    assert of.hypers.current_departure() is None
    learnt = dict(of.model.named_parameters())
    assert bool(learnt["0.response_scale"].any())
    assert all(torch.equal(learnt[name], weight) for name, weight in rt.frozen(of.model).named_parameters())


@METHODS
def test_statistics_of_layers_that_do_not_respond_move_once_a_step(method: str) -> None:
    plain = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False), nn.Dropout(0.2), nn.Linear(8, 3))
    of = tuner(rt.self_tuning(plain), method=method)
    of.train_step(BATCH)
    assert int(plain.get_buffer("1.num_batches_tracked")) == 1
    of.valid_step(BATCH)
    assert int(plain.get_buffer("1.num_batches_tracked")) == 1


LOSSES: list[tuple[str, Callable[..., Any], str]] = [
    (
        "train_loss",
        lambda out, batch, h: out,
        r"the training loss must be \(B,\) = \(8,\), one an example, or their mean",
    ),
    ("train_loss", lambda out, batch, h: torch.cat([out.sum(1)] * 2), r"got shape \(16,\)"),
    ("train_loss", lambda out, batch, h: out.detach().sum(1), "the training loss has no gradient"),
    ("train_loss", lambda out, batch, h: out.argmax(1), "the training loss must be a tensor of floating-point numbers"),
    (
        "train_loss",
        lambda out, batch, h: 1.0,
        "the training loss must be a tensor of floating-point numbers, got float",
    ),
    ("train_loss", lambda out, batch, h: train_loss(out, batch, h) * h.hue, "there is no hyperparameter 'hue'"),
    ("valid_loss", lambda out, batch: out.detach().sum(), "the validation loss has no gradient"),
]


@METHODS
@pytest.mark.parametrize(("level", "loss", "told"), LOSSES)
def test_losses_that_are_none_are_named(method: str, level: str, loss: Callable[..., Any], told: str) -> None:
    options: dict[str, Any] = {level: loss}
    of = tuner(method=method, ratio=1, **options)
    before = everything(of) if level == "train_loss" else [of.hypers.raw.detach().clone()]
    with pytest.raises((TypeError, ValueError, rt.HyperparameterError), match=told):
        of.step(BATCH, BATCH)
    after = everything(of) if level == "train_loss" else [of.hypers.raw]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(p.grad is None for group in of.groups for p in group)


@METHODS
def test_a_mean_is_as_good_as_losses(method: str) -> None:
    found = []
    for loss in (train_loss, lambda out, batch, h: train_loss(out, batch, h).mean()):
        torch.manual_seed(0)
        of = tuner(method=method, train_loss=loss)
        torch.manual_seed(1)
        of.step(BATCH, BATCH)
        found.append(everything(of))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


BATCHES: list[tuple[Any, str]] = [
    ((BATCH[0][:0], BATCH[1][:0]), r"the batch has no examples: its first tensor is \(0, 6\)"),
    ((torch.tensor(1.0),), r"the batch has no examples: its first tensor is \(\)"),
    ((BATCH[0].to("meta"), BATCH[1]), "the batch is on the meta device"),
    (BATCH[0], "a batch must be a tuple whose first part the network takes, got Tensor; give Tuner predict="),
    (("a", "b"), "the batch holds no tensor to tell its size by; give Tuner size="),
    (
        (BATCH[0][:1], BATCH[1][:1]),
        r"1: .* more than 1 value per channel, .* got input \(1, 8\)",
    ),
]


@METHODS
@pytest.mark.parametrize(("batch", "told"), BATCHES)
def test_batches_that_are_none_are_named_on_both_levels(method: str, batch: Any, told: str) -> None:
    of = tuner(method=method, ratio=1)
    before = everything(of)
    with pytest.raises(ValueError, match=told):
        of.train_step(batch)
    with pytest.raises(ValueError, match=told):
        of.valid_step(batch)
    assert all(torch.equal(one, other) for one, other in zip(before, everything(of), strict=True))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"clip": 0}, "clip must be a positive number, or None for no limit, got 0"),
        ({"clip": -1.0}, "clip must be a positive number"),
        ({"entropy": float("nan")}, "entropy must be a finite number of at least 0, got nan"),
        ({"ratio": True}, "ratio must be an integer of at least 1, got True"),
        ({"seed": "x"}, "seed must be an integer, got 'x'"),
        ({"optimizer": None}, "optimizer must be a function, got None"),
        ({"optimizer": lambda params: None}, "optimizer must make a torch.optim.Optimizer, it made a NoneType"),
        ({"hyper_optimizer": torch.optim.SGD([torch.zeros(1)], 0.1)}, "hyper_optimizer must be a factory"),
        ({"train_loss": None}, "train_loss must be a function, got None"),
        ({"predict": 3}, "predict must be a function, got 3"),
    ],
)
def test_settings_that_cannot_be_are_named(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        tuner(**options)


def test_networks_without_numbers_or_apart_from_their_hyperparameters_are_named() -> None:
    with pytest.raises(ValueError, match="the network is on the meta device"):
        tuner(net().to("meta"))
    apart = net()
    hypers: Any = apart.hypers
    hypers.raw = nn.Parameter(hypers.raw.detach().to("meta"))
    with pytest.raises(ValueError, match="the network is on the meta device|hyperparameters are on meta"):
        tuner(apart)


@pytest.mark.parametrize(
    "make", [lambda: rt.Rate(1e-12), lambda: rt.Rate(1 - 1e-9), lambda: rt.Between(1e-9, 0.0, 1.0)]
)
def test_starts_without_a_signal_are_named(make: Callable[[], Hyper]) -> None:
    with pytest.raises(ValueError, match="within 1e-05 of a bound, counted from bound to bound"):
        make()


def test_a_scripted_network_is_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of what users may still have
        scripted = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="0 is compiled by torch.jit, which fixes what it does"):
        rt.self_tuning(nn.Sequential(scripted, nn.Dropout(0.1), nn.Linear(2, 2)))


def test_what_is_no_network_or_no_hyperparameters_is_named() -> None:
    with pytest.raises(ValueError, match="self_tuning wants a network, an nn.Module, got str"):
        rt.self_tuning("net")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"hypers must be Hyperparameters\(name=Rate\(0.05\), ...\), got dict"):
        rt.self_tuning(nn.Linear(2, 2), {"a": rt.Rate(0.1)})  # type: ignore[arg-type]


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_networks_made_of_low_precision_are_refused_as_by_self_tuning(low: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"0.weight must be float32 or float64, got {low}; give Tuner autocast="):
        tuner(net().to(low))


def test_layers_of_another_precision_than_the_hyperparameters_are_named() -> None:
    model: Any = net()
    model[3].double()
    with pytest.raises(ValueError, match="3.weight is torch.float64 and hyperparameters are torch.float32"):
        tuner(model)
    tuner(net().double())
    left: Any = rt.self_tuning(nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.1), nn.Linear(3, 3)), leave=["2"])
    left[2].double()
    tuner(left)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.drop, self.last = nn.GRU(6, 8, batch_first=True), nn.Dropout(0.2), nn.Linear(8, 3)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, state = self.rnn(x[:, None], state)
        return self.last(self.drop(y[:, 0])), state


PREDICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"predict": lambda model, batch: model(batch[0]), "carry": True}, r"predict must take .* a state, got one"),
    ({"predict": lambda model: model}, r"predict must take a model and a batch, got one that takes \(model\)"),
    ({"carry": True}, r"the network must take an input and a state, it takes \(input.*\).*; give predict="),
    ({"autocast": torch.autocast("cpu", torch.bfloat16)}, r"such as lambda: autocast\(...\), got the context itself"),
]


@pytest.mark.parametrize(("options", "told"), PREDICTIONS)
def test_what_cannot_be_called_as_it_will_be_is_named(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        tuner(**options)


@METHODS
def test_a_prediction_without_a_state_and_a_state_that_does_not_fit_are_named(method: str) -> None:
    of = tuner(method=method, predict=lambda model, batch, state: model(batch[0]), carry=True)
    with pytest.raises(ValueError, match="a prediction and the next state are wanted, two parts, got Tensor"):
        of.step(BATCH)
    of = tuner(rt.self_tuning(Recurrent()), method=method, carry=True, ratio=1)
    of.step(BATCH, BATCH)
    smaller = (BATCH[0][:5], BATCH[1][:5])
    told = "the carried state is of 8 examples and does not fit a batch of 5: batches of a level must be of one size"
    for step in (of.train_step, of.valid_step):
        with pytest.raises(ValueError, match=told):
            step(smaller)
    of.step(BATCH, BATCH)


def test_a_tuner_of_hyperparameters_that_another_had_begins_to_watch_anew() -> None:
    hypers = Hyperparameters(drop=rt.Rate(0.2), decay=rt.Positive(0.1))
    model = rt.self_tuning(nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 3)), hypers)
    model[1].__class__ = nn.Dropout  # type: ignore[index]
    hypers.read.add("drop")
    decayed = lambda out, batch, h: train_loss(out, batch, h) * (1 + h.decay)  # noqa: E731
    with pytest.warns(UserWarning, match="nobody read hyperparameter 'drop'"):
        tuner(model, train_loss=decayed).step(BATCH)
