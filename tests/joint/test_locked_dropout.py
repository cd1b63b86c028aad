"""LockedDropout at a tuned rate: one mask a sequence, each row's at its own rate; plain again at the current one."""

from typing import Any

import pytest
import torch
from torch import nn

import revtune as rt
from revtune.tuning.hypers.hyperparameters import Pass

STEPS, ROWS, WIDTH = 4, 3, 50


def tuned(**options: Any) -> Any:
    """A net that drops whole units of its features."""
    return rt.self_tuning(nn.Sequential(rt.LockedDropout(0.3), nn.Linear(WIDTH, WIDTH)), batch_dim=1, **options)


def test_it_becomes_a_rate_and_is_plain_again_at_its_value() -> None:
    net = tuned()
    assert net.hypers.values() == {"0": 0.3} and "its rate tuned" in net.conversion.replaced["0"]
    with torch.no_grad():
        net.hypers.raw += 1.0
    plain = rt.frozen(net)[0]  # type: ignore[index]
    assert type(plain) is rt.LockedDropout and plain.p == pytest.approx(net.hypers.values()["0"])


def test_each_row_has_its_own_rate_and_one_mask_for_all_steps() -> None:
    net, x = tuned(), torch.ones(STEPS, ROWS, WIDTH)
    raw = torch.tensor([[-20.0], [0.0], [20.0]])
    with net.hypers.bound(Pass(ROWS, None, raw)):
        y = net[0](x)
    assert torch.equal(y, y[:1].expand_as(y))
    assert torch.equal(y[0, 0], x[0, 0]) and not y[0, 2].any()
    assert set(y[0, 1].tolist()) == {0.0, 2.0}


def test_outside_of_a_pass_it_draws_as_the_plain_one() -> None:
    net, plain, x = tuned(), rt.LockedDropout(0.3), torch.ones(STEPS, ROWS, WIDTH)
    torch.manual_seed(1)
    found = net[0](x)
    torch.manual_seed(1)
    assert torch.equal(found, plain(x))
    net.eval()
    assert net[0](x) is x


def test_a_schedule_is_replayed_in_a_plain_net() -> None:
    schedule = {"steps": [0, 2], "values": {"0": [0.1, 0.6]}, "rates": {"0": ["0.p"]}}
    net = nn.Sequential(rt.LockedDropout(0.3), nn.Linear(WIDTH, WIDTH))
    player, seen = rt.replay(schedule, net), []
    for _ in range(3):
        player.step()
        seen.append(net[0].p)
    assert seen == [0.1, 0.1, 0.6]


def test_what_is_no_sequence_is_refused() -> None:
    net = tuned()
    with (
        net.hypers.bound(Pass(ROWS, None, torch.zeros(ROWS, 1))),
        pytest.raises(ValueError, match="wants .T, B, H.*got"),
    ):
        net[0](torch.ones(ROWS, WIDTH))
