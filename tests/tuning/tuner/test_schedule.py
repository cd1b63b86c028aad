"""Schedules: whole, also of a tuner that was resumed."""

import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import revtune as rt
from revtune.tuning.regularizers.regularizer import TunedRegularizer
from revtune.tuning.tuner.schedule import places


def tuner_of(net: nn.Module, **more: Any) -> rt.Tuner:
    return rt.Tuner(
        rt.self_tuning(net), lambda out, batch, h: F.cross_entropy(out, batch[1], reduction="none"),
        lambda out, batch: F.cross_entropy(out, batch[1]), optimizer=lambda params: torch.optim.SGD(params, 0.1),
        **more,
    )  # fmt: skip


def made(**more: Any) -> rt.Tuner:
    torch.manual_seed(1)
    return tuner_of(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 3)), **more)


BATCH = torch.randn(6, 4), torch.randint(3, (6,))


def test_values_hold_from_the_step_after_their_validation_on() -> None:
    tuner, values = made(warmup=1, ratio=2), []
    assert tuner.schedule() == {"steps": [0], "values": {"1": [0.2]}, "rates": {"1": ["1.p"]}}
    for _ in range(6):
        values.append(tuner.values()["1"])
        tuner.step(BATCH, BATCH)
    found = tuner.schedule()
    assert found["steps"] == [0, 3, 5] and found["values"]["1"][:2] == [values[0], values[3]]
    assert found["values"]["1"][-1] == values[5] and json.loads(json.dumps(found)) == found


def test_the_last_of_several_validation_steps_holds() -> None:
    tuner = made()
    tuner.valid_step(BATCH)
    tuner.train_step(BATCH)
    tuner.valid_step(BATCH), tuner.valid_step(BATCH)
    found = tuner.schedule()
    assert found["steps"] == [0, 1] and found["values"]["1"] == [
        tuner.history.records[0]["values"]["1"], tuner.values()["1"]
    ]  # fmt: skip


def test_a_resumed_tuner_has_a_whole_schedule() -> None:
    tuner = made()
    for _ in range(4):
        tuner.step(BATCH, BATCH)
    again = tuner_of(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 3)))
    state = tuner.state_dict()
    again.load_state_dict(state)
    assert again.schedule() == tuner.schedule()
    second = rt.Tuner(
        again.model, again.problem.train_loss, again.problem.valid_loss, optimizer=lambda p: torch.optim.SGD(p, 0.1)
    )
    assert second.schedule()["values"]["1"] == [tuner.values()["1"]] != [0.2]
    second.load_state_dict({name: part for name, part in state.items() if name != "start"})  # of an earlier version
    assert second.schedule() == tuner.schedule()


def test_what_lacks_values_is_told() -> None:
    tuner = made()
    for _ in range(4):
        tuner.step(BATCH, BATCH)
    state = tuner.state_dict()
    with pytest.raises(ValueError, match="the saved state is damaged: start must be values of 1, got {'2': 0.2}"):
        tuner.load_state_dict({**state, "start": {"2": 0.2}})
    tuner.history.records.clear()
    with pytest.raises(ValueError, match="the history has 0 records of 2 validation steps"):
        tuner.schedule()


class DropPath(nn.Module):
    """As timm's."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_prob = 0.1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_hyperparameter_may_set_several_rates_and_a_regularizer_of_ones_own() -> None:
    class Own(TunedRegularizer):
        limits = {"gain": rt.TunedNoise.limits["deviation"]}

        def forward(self, x: Any) -> Any:
            return x

    hypers = rt.Hyperparameters(drop=rt.Rate(0.3), gain=rt.Positive(0.1), path=rt.Rate(0.1))
    net = nn.ModuleDict({
        "one": nn.ModuleDict({"drop": nn.Dropout(), "linear": nn.Linear(2, 2)}), "drop": nn.Dropout2d(),
        "own": Own(hypers, gain="gain"), "path": DropPath(), "still": rt.TunedNoise(hypers, 0.3),
    })  # fmt: skip
    rt.self_tuning(net, hypers)
    assert places(net, "drop") == ["one.drop.p", "drop.p"] and places(net, "gain") == ["own.gain"]
    assert places(net, "path") == ["path.drop_prob"]
