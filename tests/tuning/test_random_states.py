"""The states of generators, of the device that they are asked for."""

import pytest
import torch

from revtune.tuning.random_states import random_states, set_random_states


def test_a_device_that_is_not_the_current_one_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {torch.device("cuda:0"): torch.tensor([0]), torch.device("cuda:1"): torch.tensor([1])}
    monkeypatch.setattr(torch.cuda, "get_rng_state", kept.__getitem__)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: kept.__setitem__(device, state))
    states = random_states(torch.device("cuda:1"))
    drawn = torch.rand(3)
    kept[torch.device("cuda:1")] = torch.tensor([7])
    set_random_states(states, torch.device("cuda:1"))
    assert [one.item() for one in kept.values()] == [0, 1] and torch.equal(torch.rand(3), drawn)
