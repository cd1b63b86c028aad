"""Optimizers that cannot tune, or would pull what they must not, are refused by name, now and later."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.small_tuner import BATCH, everything, net, tuner


def flat(groups: list[dict[str, Any]]) -> list[nn.Parameter]:
    return [p for group in groups for p in group["params"]]


HYPER_OPTIMIZERS: list[tuple[Any, str]] = [
    (lambda params: torch.optim.SGD([torch.zeros(1)], 0.1), "must make its optimizer from the groups it is handed"),
    (lambda params: None, "must make a torch.optim.Optimizer, it made a NoneType"),
    (lambda params: torch.optim.AdamW(params, 0.1), "decays hyperparameters by weight_decay=0.01"),
    (lambda params: torch.optim.ASGD(params, 0.1), "decays hyperparameters by lambd=0.0001"),
    (lambda params: torch.optim.LBFGS(flat(params)), "steps by gradients, but LBFGS needs a closure"),
]


@pytest.mark.parametrize(("factory", "told"), HYPER_OPTIMIZERS)
def test_optimizers_of_hyperparameters_that_cannot_work_are_refused(factory: Any, told: str) -> None:
    with pytest.raises(ValueError) as refused:
        tuner(hyper_optimizer=factory)
    assert told in str(refused.value)


OPTIMIZERS: list[tuple[Any, str]] = [
    (lambda params: torch.optim.ASGD(params, 0.1), "the optimizer decays responses by lambd=0.0001"),
    (lambda params: torch.optim.LBFGS(flat(params)), "one that steps by gradients, but LBFGS needs a closure"),
    (lambda params: torch.optim.SGD(params[:1], 0.1), r"but it lacks \d+ of them and holds 0 others; give"),
]


@pytest.mark.parametrize(("factory", "told"), OPTIMIZERS)
def test_optimizers_of_weights_that_cannot_work_are_refused(factory: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        tuner(optimizer=factory)


def test_an_average_that_does_not_decay_responses_trains() -> None:
    of = tuner(optimizer=lambda params: torch.optim.ASGD([params[0], {**params[1], "lambd": 0.0}], 0.1))
    of.step(BATCH)


def test_what_an_optimizer_holds_too_much_is_named() -> None:
    model = net()
    with pytest.raises(ValueError, match=r"lacks 0 of them and holds 2 others \(the hyperparameters, their scales\)"):
        tuner(model, optimizer=lambda params: torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(ValueError, match=r"holds 1 others \(one of shape \(7,\)\)"):
        tuner(optimizer=lambda params: torch.optim.SGD([*params, {"params": [nn.Parameter(torch.ones(7))]}], 0.1))


@pytest.mark.parametrize("level", ["optimizer", "hyper_optimizer"])
def test_decay_that_is_set_later_is_refused_at_the_next_step(level: str) -> None:
    of = tuner(ratio=1)
    of.step(BATCH, BATCH)
    before = everything(of)
    for group in getattr(of, level).param_groups:
        group["weight_decay"] = 0.1
    step = of.train_step if level == "optimizer" else of.valid_step
    with pytest.raises(ValueError, match="decays (responses|hyperparameters) by weight_decay=0.1"):
        step(BATCH)
    assert all(map(torch.equal, before, everything(of)))
    getattr(of, level).param_groups[1]["weight_decay"] = 0.0
    if level == "optimizer":
        step(BATCH)
