"""Plain networks read their rates as numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from revtune.tuning.conversion.plain import plain
from revtune.tuning.hypers.constants import Constants
from revtune.tuning.hypers.kinds import Hyper, Rate
from revtune.tuning.regularizers.dropouts import TunedNoise

SPECS: dict[str, Hyper] = {"drop": Rate(0.05), "noise": Rate(0.5)}


class Net(nn.Module):
    def __init__(self, hypers: Constants) -> None:
        super().__init__()
        self.noise, self.drop, self.other = TunedNoise(hypers, "noise"), nn.Dropout(0.3), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.noise(x))
        return out


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


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_read_their_rates(kind: Any) -> None:
    hypers = Constants({"dropout": Rate(0.05), "weight_drop": Rate(0.05, per="batch")})
    torch.manual_seed(0)
    layer, x = kind(4, 30, 2), torch.randn(1, 3, 4)
    before, weights = layer.eval()(x)[0], dict(layer.state_dict())
    net = plain(nn.ModuleDict({"rnn": layer}), hypers)
    assert isinstance(layer, kind) and list(net.state_dict()) == [f"rnn.{name}" for name in weights]
    assert torch.equal(layer(x)[0], before)
    hypers.put({"dropout": 0.0, "weight_drop": 0.0})
    assert torch.equal(layer.train()(x)[0], before)
    state = torch.randn(2, 3, 30)
    whole = layer(x, (state, state) if kind is nn.LSTM else state)[0]
    hypers.put({"weight_drop": 1 - 1e-9})  # what is left of recurrent weights is nothing: as from no state
    dropped = layer(x, (state, 0 * state) if kind is nn.LSTM else state)[0]
    assert not torch.allclose(dropped, whole) and all(map(torch.equal, layer.state_dict().values(), weights.values()))
    if kind is nn.LSTM:
        assert torch.allclose(dropped, before, atol=1e-6)
    hypers.put({"dropout": 0.5, "weight_drop": 0.0})
    layer(x)
    assert layer.dropout == 0.5


def test_recurrent_weights_are_dropped_one_by_one_and_scaled() -> None:
    hypers = Constants({"weight_drop": Rate(0.75, per="batch")})
    cell: Any = nn.LSTM(1, 400, bias=False)
    with torch.no_grad():
        cell.weight_hh_l0.fill_(1e-3)
        cell.weight_ih_l0.zero_()
    plain(nn.ModuleDict({"rnn": cell}), hypers)
    states = torch.ones(1, 1, 400), torch.ones(1, 1, 400)
    cell(torch.zeros(1, 1, 1), states)[0].sum().backward()
    grads: Tensor = cell.weight_hh_l0.grad
    assert abs(grads.count_nonzero() / grads.numel() - 0.25) < 0.01
    rows = grads[:400].max(1).values, grads[:400].median(1).values
    assert (rows[0] > 0).all() and (rows[1] == 0).all()
