"""Hyperparameters as numbers, and the plain networks that read them."""

import pytest
import torch
from torch import Tensor, nn

from revtune.constants import Constants, Numbers, plain
from revtune.errors import HyperparameterError
from revtune.hyper import Hyper, Integer, Rate
from revtune.regularize import TunedNoise

SPECS: dict[str, Hyper] = {"drop": Rate(0.05), "noise": Rate(0.5), "holes": Integer(1, 0, 4)}


class Net(nn.Module):
    def __init__(self, hypers: Constants) -> None:
        super().__init__()
        self.noise, self.drop, self.other = TunedNoise(hypers, "noise"), nn.Dropout(0.3), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.noise(x))
        return out


def test_values_are_where_they_start_or_are_put() -> None:
    hypers = Constants(SPECS, {"drop": 0.4})
    assert hypers.values() == {"drop": 0.4, "noise": 0.5, "holes": 1}
    hypers.put({"holes": 3})
    assert (hypers["holes"], hypers.values()["holes"]) == (3, 3)
    with pytest.raises(HyperparameterError, match="no hyperparameter 'dorp'; there are drop, noise, holes"):
        hypers.put({"dorp": 0.1})


def test_a_plain_network_acts_by_the_numbers_of_the_moment() -> None:
    hypers = Constants(SPECS, {"drop": 0.25, "noise": 0.0})
    net = plain(Net(hypers), hypers)
    assert not list(net.state_dict())
    for rate in (0.25, 0.75):
        hypers.put({"drop": rate})
        out = net(torch.ones(100, 100))
        assert abs((out == 0).float().mean().item() - rate) < 0.02
        assert torch.allclose(out.max(), torch.tensor(1 / (1 - rate)))
    assert net.get_submodule("other").p == 0.2
    assert torch.equal(net.eval()(torch.ones(3)), torch.ones(3))


def test_numbers_are_read_as_attributes_too() -> None:
    assert Numbers(decay=0.1).decay == 0.1
    with pytest.raises(AttributeError, match="decya"):
        _ = Numbers(decay=0.1).decya
