"""Each module's own mode: what a user put into evaluation mode stays there in a tuner's steps."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.tuning.tuner.tuner import Tuner

methods = pytest.mark.parametrize("method", ["delta", "stn"])


class Net(nn.Module):
    """A backbone with running statistics, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.norm, self.drop, self.head = nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.backbone(x))))


def tuner_of(method: Any, **settings: Any) -> Tuner:
    def loss(out: Tensor, batch: Any, h: Any = None) -> Tensor:
        return F.cross_entropy(out, batch[1], reduction="none")

    torch.manual_seed(0)
    return Tuner(rt.self_tuning(Net()), loss, lambda out, batch: loss(out, batch).mean(), method=method,
                 optimizer=lambda groups: torch.optim.SGD(groups, 0.1), **{"ratio": 1, **settings})  # fmt: skip


def steps(tuner: Tuner, count: int = 2) -> list[str]:
    """What is told in some steps."""
    generator = torch.Generator().manual_seed(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(count):
            batch = torch.randn(5, 6, generator=generator), torch.randint(3, (5,), generator=generator)
            tuner.step(batch, batch)
    return [str(warning.message) for warning in caught]


def resting(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if not module.training]


@methods
@pytest.mark.parametrize("leave", [(), ("backbone",)])
def test_a_frozen_backbone_stays_in_evaluation_mode(method: str, leave: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    net: Any = rt.self_tuning(Net(), leave=leave)
    tuner = Tuner(net, lambda out, batch, h: F.cross_entropy(out, batch[1], reduction="none"),
                  lambda out, batch: F.cross_entropy(out, batch[1]), optimizer=lambda g: torch.optim.SGD(g, 0.1),
                  method=method, ratio=1)  # type: ignore[arg-type]  # fmt: skip
    net.backbone.eval()
    wanted, backbone, own = resting(net), *(m.running_mean.clone() for m in (net.backbone[1], net.norm))
    seen = []
    net.backbone[3].register_forward_hook(lambda module, given, out: seen.append(torch.equal(given[0], out)))
    told = steps(tuner)
    net.eval()  # as an evaluation, after which many loops forget net.train()
    steps(tuner)
    assert resting(net) == wanted and all(seen) and len(seen) >= 8
    assert torch.equal(net.backbone[1].running_mean, backbone) and not torch.equal(net.norm.running_mean, own)
    assert [sentence for sentence in told if "backbone.3" not in sentence] == []
    assert ("nobody read hyperparameter 'backbone.3'" in "".join(told)) == (not leave)
    net.train()  # says of every module that it trains
    steps(tuner)
    assert resting(net) == [] and not torch.equal(net.backbone[1].running_mean, backbone)


@methods
def test_a_network_in_evaluation_mode_as_a_whole_trains(method: str) -> None:
    found = []
    for prepare in (lambda net: net.train(), lambda net: net.eval()):
        tuner = tuner_of(method)
        prepare(tuner.model)
        assert steps(tuner) == [] and resting(tuner.model) == []
        found.append(copy.deepcopy(tuner.model.state_dict()))
    assert all(torch.equal(v, found[1][name]) for name, v in found[0].items() if isinstance(v, Tensor))


def test_modules_that_train_in_a_network_that_rests_train_alone() -> None:
    tuner = tuner_of("stn")
    net: Any = tuner.model
    net.eval()
    net.head.train()
    wanted, before = resting(net.backbone), net.backbone[1].running_mean.clone()
    for time in range(2):
        told = steps(tuner)
        assert ["head: in training mode while the network as a whole is" in "".join(told)] == [time == 0]
        assert resting(net.backbone) == wanted and torch.equal(net.backbone[1].running_mean, before)
        assert net.training and net.head.training and not net.norm.training
        net.eval()  # as an evaluation


def test_a_tuned_dropout_that_comes_to_rest_is_told_once() -> None:
    tuner = tuner_of("delta")
    assert steps(tuner) == []
    tuner.model.get_submodule("drop").eval()
    (told,) = steps(tuner)
    assert told.startswith("drop: in evaluation mode while the network trains, so nothing is dropped there")
    assert steps(tuner) == []


def test_a_module_that_fails_leaves_modes_as_they_were() -> None:
    tuner = tuner_of("stn")
    tuner.model.get_submodule("backbone").eval()
    wanted = resting(tuner.model)
    with pytest.raises(RuntimeError):
        tuner.train_step((torch.randn(5, 7), torch.zeros(5, dtype=torch.long)))
    assert resting(tuner.model) == wanted
