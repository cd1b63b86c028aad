"""Frozen networks are plain ones of the same outputs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from revtune.tuning.conversion.convert import self_tuning
from revtune.tuning.conversion.freeze import frozen
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Rate
from revtune.tuning.responses.responding import Responding
from tests.tuned_nets import Tied, pictures, with_responses


@pytest.mark.parametrize("kept_as", ["hyper", "hypers"])
def test_frozen_networks_hold_no_hyperparameters_anywhere(kept_as: str) -> None:
    class Keeper(nn.Module):
        def __init__(self, hypers: Hyperparameters) -> None:
            super().__init__()
            setattr(self, kept_as, hypers)
            self.body = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.body(x)
            return y * getattr(self, kept_as)["body.1"]

    hypers = Hyperparameters(**{"body.1": Rate(0.1)})
    plain = frozen(self_tuning(Keeper(hypers), hypers))
    assert sorted(plain.state_dict()) == ["body.0.bias", "body.0.weight"] and getattr(plain, kept_as) == {"body.1": 0.1}
    assert plain(torch.ones(2, 3)).shape == (2, 3)
    assert not any(type(module).__module__.startswith("revtune") for module in plain.modules())


@pytest.mark.parametrize("centred", [True, False])
def test_frozen_is_a_plain_network_of_the_same_outputs(centred: bool) -> None:
    net: Any = with_responses(self_tuning(pictures()))
    net.hypers.centred = centred
    x = torch.randn(5, 3, 8, 8)
    plain = frozen(net)
    assert [type(module) for module in plain.modules()] == [type(module) for module in pictures().modules()]
    assert plain.state_dict().keys() == pictures().state_dict().keys()
    torch.testing.assert_close(plain.eval()(x), net.eval()(x), atol=1e-5, rtol=1e-5)
    assert plain[8].p == pytest.approx(0.05) and plain[4].p == pytest.approx(0.1)  # type: ignore[index]
    assert any(isinstance(module, Responding) for module in net.modules())


@pytest.mark.parametrize("centred", [True, False])
def test_a_tied_embedding_responds_and_its_readout_stays(centred: bool) -> None:
    net: Any = with_responses(self_tuning(Tied()))
    net.hypers.centred = centred
    x = torch.randint(9, (5, 4))
    plain: Any = frozen(net)
    assert (plain.readout.weight is plain.words.weight) == centred
    torch.testing.assert_close(plain.eval()(x), net.eval()(x), atol=1e-5, rtol=1e-5)


def test_a_frozen_network_is_read_where_revtune_is_not_installed(tmp_path: Path) -> None:
    net, x = self_tuning(pictures()).eval(), torch.randn(2, 3, 8, 8)
    torch.save(frozen(net), tmp_path / "net.pt")
    torch.save({"x": x, "y": net(x)}, tmp_path / "data.pt")
    code = (
        "import sys, torch; sys.modules['revtune'] = None\n"
        "net, data = torch.load('net.pt', weights_only=False), torch.load('data.pt')\n"
        "assert torch.equal(net(data['x']), data['y'])"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_what_cannot_be_made_plain_is_named() -> None:
    with pytest.raises(ValueError, match="frozen wants a network that self_tuning converted, got Linear"):
        frozen(nn.Linear(2, 2))
    net: Any = self_tuning(pictures())
    parametrizations.weight_norm(net[6])
    with pytest.raises(ValueError, match="6 cannot be made plain: since it was converted its weight is computed"):
        frozen(net)


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated")
def test_weights_that_are_computed_anew_in_each_forward_are_copied() -> None:
    """The old weight_norm holds a tensor that torch does not copy."""
    torch.manual_seed(0)
    net: Any = self_tuning(nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4), nn.Dropout(0.1)))
    x = torch.randn(3, 4)
    net(x).sum().backward()
    plain: Any = frozen(net).eval()
    torch.testing.assert_close(plain(x), net.eval()(x))
    plain(x).sum().backward()
    assert plain[0].weight_v.grad is not None and plain[0].weight_v is not net[0].weight_v
