"""Whether others changed responses is seen by their smallest second weight."""

from typing import Any

import torch
from torch import nn

import revtune as rt
from revtune.tuning.responses.witness import Witness


def net_of(*layers: nn.Module) -> Any:
    torch.manual_seed(0)
    return rt.self_tuning(nn.Sequential(*layers, nn.Dropout(0.2)))


def test_it_sees_what_happens_to_the_smallest_second_weight() -> None:
    net = net_of(nn.Linear(6, 8), nn.Linear(8, 3), nn.LayerNorm(3))
    witness: Witness = net.hypers.witness
    net[0].response_weight.data.mul_(2)
    net[2].response_scale.data.add_(1)
    assert not witness.changed()
    net[1].response_weight.data[0, 0] += 1e-6
    assert witness.changed()
    witness.note()
    assert not witness.changed()


def test_a_cast_is_no_change_and_loading_is_noted() -> None:
    net = net_of(nn.Linear(6, 3))
    witness = net.hypers.witness
    net.double()
    assert not witness.changed()
    net[0].response_weight.data.mul_(1 + 1e-12)
    assert witness.changed()
    net.load_state_dict(net.state_dict())
    assert not witness.changed()


def test_norms_alone_are_seen_by_their_scales() -> None:
    net = net_of(nn.LayerNorm(3))
    net[0].response_scale.data[0, 0] = 1.0
    assert net.hypers.witness.changed()
