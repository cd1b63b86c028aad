"""Normalisations that respond: statistics of the batch inside a pass, moved only where the pass says so."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from revtune.tuning.hypers.hyperparameters import Pass
from tests.tuned_nets import adopt, two


def test_running_statistics_move_in_a_pass_that_says_so_and_in_plain_training() -> None:
    torch.manual_seed(0)
    hypers, x, plain = two(), torch.randn(16, 4) + 3, nn.BatchNorm1d(4)
    layer: Any = adopt(nn.BatchNorm1d(4), hypers)
    d = torch.zeros(16, 2)
    for bound in (Pass(16, None, d), Pass(16, d, d), Pass(16, d, None, training=False)):
        with hypers.bound(bound):
            torch.testing.assert_close(layer(x), plain(x))
    assert not layer.running_mean.any() and layer.num_batches_tracked == 0
    fresh: Any = nn.BatchNorm1d(4)
    fresh(x)
    with hypers.bound(Pass(16, None, d, statistics=True)):
        layer(x)
    assert torch.equal(layer.running_mean, fresh.running_mean) and layer.num_batches_tracked == 1
    layer(x), fresh(x)
    torch.testing.assert_close(layer.running_var, fresh.running_var)


def test_a_cumulative_average_is_one() -> None:
    hypers = two()
    layer: Any = adopt(nn.BatchNorm1d(2, momentum=None), hypers)
    batches = torch.randn(3, 8, 2)
    for x in batches:
        with hypers.bound(Pass(8, None, torch.zeros(8, 2), statistics=True)):
            layer(x)
    torch.testing.assert_close(layer.running_mean, batches.mean((0, 1)))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("missing", ["track_running_stats", "num_batches_tracked"])
def test_statistics_that_are_not_tracked_any_more_stay_as_torchs_do(missing: str, momentum: float | None) -> None:
    torch.manual_seed(0)
    hypers, x, plain = two(), torch.randn(16, 4) + 3, nn.BatchNorm1d(4, momentum=momentum)
    plain(x)
    layer: Any = adopt(copy.deepcopy(plain), hypers)
    for norm in (plain, layer):
        setattr(norm, missing, False if missing == "track_running_stats" else None)
    with hypers.bound(Pass(16, None, torch.zeros(16, 2), statistics=True)):
        torch.testing.assert_close(layer(x + 1), plain(x + 1))
    torch.testing.assert_close(layer.running_mean, plain.running_mean)
    torch.testing.assert_close(layer.running_var, plain.running_var)
    assert layer.num_batches_tracked == plain.num_batches_tracked


def test_evaluation_outside_a_pass_goes_by_the_running_statistics() -> None:
    hypers, x = two(), torch.randn(8, 2)
    layer = adopt(nn.BatchNorm1d(2), hypers).eval()
    torch.testing.assert_close(layer(x), x / (1 + 1e-5) ** 0.5)


@pytest.mark.parametrize("training", [True, False])
def test_in_evaluation_mode_a_pass_goes_by_the_running_statistics_and_moves_none(training: bool) -> None:
    hypers, x, d = two(), torch.randn(8, 2) + 3, torch.zeros(8, 2)
    layer: Any = adopt(nn.BatchNorm1d(2), hypers).eval()
    layer.running_mean.fill_(0.5)
    before, plain = layer.running_mean.clone(), nn.BatchNorm1d(2).eval()
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if "response" not in name})
    with hypers.bound(Pass(8, d, d if training else None, training=training, statistics=training)):
        torch.testing.assert_close(layer(x), plain(x))
        torch.testing.assert_close(layer(x[:1].expand(8, 2)), plain(x[:1].expand(8, 2)))
    assert torch.equal(layer.running_mean, before) and layer.num_batches_tracked == 0


def test_a_batch_of_one_is_refused_as_torch_does() -> None:
    hypers = two()
    layer = adopt(nn.BatchNorm1d(2), hypers)
    refused = pytest.raises(ValueError, match="more than 1 value per channel")
    with hypers.bound(Pass(1, torch.zeros(1, 2), None)), refused:
        layer(torch.randn(1, 2))
