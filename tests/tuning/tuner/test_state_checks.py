"""Saved states that do not fit, or are damaged, are refused by name, and nothing has been loaded then."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import revtune as rt
from tests.small_tuner import BATCH, everything, net, tuner


@pytest.mark.parametrize("what", ["kinds", "groups", "units"])
def test_a_state_that_does_not_fit_changes_nothing(what: str) -> None:
    factories: dict[str, Any] = {
        "kinds": lambda params: torch.optim.Adam(params, 0.1),
        "groups": lambda params: torch.optim.SGD([{"params": [p]} for group in params for p in group["params"]], 0.1),
        "units": lambda params: torch.optim.SGD(params, 0.1),
    }
    other = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    saved = tuner(rt.self_tuning(other) if what == "units" else None, optimizer=factories[what])
    saved.train_step(BATCH)
    of = tuner()
    of.train_step(BATCH)
    before, steps, values = everything(of), of.steps, of.values()
    with pytest.raises(ValueError):
        of.load_state_dict(saved.state_dict())
    assert all(map(torch.equal, everything(of), before)) and of.steps == steps and of.values() == values
    of.train_step(BATCH)


def test_states_of_something_else_are_named_and_nothing_is_loaded() -> None:
    of = tuner()
    of.step(BATCH, BATCH)
    before = everything(of)
    wrong: list[tuple[Any, str]] = [
        ({}, "the saved state is none of a Tuner: .* is missing"),
        ([], "the saved state is none of a Tuner: got list"),
        (tuner(method="stn").state_dict(), "is of method 'stn', this tuner's is 'delta'"),
        ({**of.state_dict(), "steps": "7"}, "damaged: steps must be a count, got '7'"),
        ({**of.state_dict(), "seconds": float("nan")}, "damaged: seconds must be a time, got nan"),
        ({**of.state_dict(), "history": 3}, "damaged: history must be a list, got 3"),
        ({**of.state_dict(), "optimizer": {"state": 1}}, "the saved state is damaged: "),
        ({**of.state_dict(), "model": dict.fromkeys(of.state_dict()["model"], 1)}, "0.weight must be a tensor, got 1"),
        (tuner(net(9)).state_dict(), r"of another network: 0.weight is \(9, 6\) there and \(8, 6\) here"),
    ]
    for state, told in wrong:
        with pytest.raises(ValueError, match=told):
            of.load_state_dict(state)
    assert all(torch.equal(one, other) for one, other in zip(before, everything(of), strict=True))


def adam() -> rt.Tuner:
    """A tuner with states in both optimizers."""
    of = tuner(optimizer=lambda params: torch.optim.Adam(params, 0.1), ratio=1)
    of.step(BATCH, BATCH)
    return of


def unlike(state: dict[str, Any], level: str) -> None:
    state[level]["state"][0]["exp_avg"] = torch.zeros(3, 2)


def nothing_of(state: dict[str, Any], level: str) -> None:
    del state[level]["state"][0]


def half_of(state: dict[str, Any], level: str) -> None:
    del state[level]["state"][0]["exp_avg_sq"]


DAMAGES: list[tuple[Callable[..., None], str]] = [
    (unlike, "does not fit, or is damaged: .*Adam cannot go on from its state"),
    (nothing_of, r"is damaged: .*optimizer\['state'\] must be that of \d+ parameters"),
    (half_of, "does not fit, or is damaged: .*Adam cannot go on from its state"),
]


@pytest.mark.parametrize("level", ["optimizer", "hyper_optimizer"])
@pytest.mark.parametrize(("damage", "told"), DAMAGES)
def test_states_of_optimizers_that_cannot_go_on_are_refused(damage: Any, told: str, level: str) -> None:
    of = adam()
    state, before = copy.deepcopy(of.state_dict()), everything(of)
    of.load_state_dict(state)
    damage(state, level)
    with pytest.raises(ValueError, match=f"the saved state {told}"):
        of.load_state_dict(state)
    assert all(map(torch.equal, before, everything(of)))
    of.step(BATCH, BATCH)


@pytest.mark.parametrize("name", ["raw", "spread"])
def test_hyperparameters_that_are_no_numbers_are_not_loaded(name: str) -> None:
    of = adam()
    state = copy.deepcopy(of.state_dict())
    next(value for key, value in state["model"].items() if key.endswith(name)).fill_(float("nan"))
    told = "the saved state does not fit, or is damaged: hyperparameter '2' is no finite number"
    with pytest.raises(ValueError, match=told):
        of.load_state_dict(state)
    assert of.hypers.raw.isfinite().all() and of.hypers.spread.isfinite().all()


def test_states_of_an_earlier_version_are_taken_up() -> None:
    of = adam()
    state = of.state_dict()
    del state["held"]
    adam().load_state_dict(state)


def carrying(carry: bool) -> rt.Tuner:
    """A tuner of a recurrent network, at its first values."""
    torch.manual_seed(0)
    network = rt.self_tuning(nn.ModuleDict({"rnn": nn.GRU(4, 6), "drop": nn.Dropout(0.1)}), batch_dim=1)

    def predict(model: Any, batch: torch.Tensor, state: Any = None) -> Any:
        y, after = model["rnn"](batch, state)
        return (model["drop"](y), after) if carry else model["drop"](y)

    def loss(out: torch.Tensor, batch: torch.Tensor, h: Any = None) -> torch.Tensor:
        return out.square().mean((0, 2))

    return rt.Tuner(network, loss, loss, optimizer=lambda params: torch.optim.SGD(params, 0.1), predict=predict,
                    carry=carry)  # fmt: skip


@pytest.mark.parametrize("carry", [False, True])
def test_a_state_with_carried_states_belongs_to_a_tuner_that_carries(carry: bool) -> None:
    saved, of = carrying(not carry), carrying(carry)
    saved.train_step(torch.randn(5, 3, 4))
    with pytest.raises(ValueError, match=f"is of a tuner with carry={not carry}, this tuner's is carry={carry}"):
        of.load_state_dict(saved.state_dict())
    assert of.steps == 0


def test_batches_of_another_size_are_named_after_a_state_was_loaded_too() -> None:
    saved, of = carrying(True), carrying(True)
    saved.train_step(torch.randn(5, 3, 4))
    of.load_state_dict(saved.state_dict())
    for one in (saved, of):
        with pytest.raises(ValueError, match="the carried state is of 3 examples and does not fit a batch of 2"):
            one.train_step(torch.randn(5, 2, 4))
