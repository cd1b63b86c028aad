"""Losses of signals: a policy's against its equation."""

import pytest
import torch

from revtune.program.signals.losses import policy


def test_the_policys_loss_is_ppos() -> None:
    scores = torch.tensor([[0.0, 0.0, 1.5], [2.0, 0.0, 0.0]])
    likely = scores[:, :2].softmax(-1)[:, 0]
    before = likely.log() - torch.tensor([0.0, 1.0])  # the second ratio is e, cut to 1.2
    y = torch.stack([torch.zeros(2), before, torch.tensor([3.0, 2.0]), torch.tensor([1.0, 0.0])], -1)
    assert policy(scores, y).item() == pytest.approx(0.5 * 0.25 - 3.0 - 2 * 1.2)
