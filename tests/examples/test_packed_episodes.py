"""Packed episodes are the padded ones, and are learnt."""

import torch

from examples import packed_episodes as example
from tests.stored import relative


def test_packed_episodes_have_the_loss_of_padded_ones() -> None:
    torch.manual_seed(0)
    net, found = example.Judge(), example.episodes(40)
    few, many = example.packed(found), example.in_rows([[episode] for episode in found])
    assert few.targets.shape[1] == 8 and few.targets.numel() < 0.75 * many.targets.numel()
    losses = [net.loss(rows) for rows in (few, many)]
    grads = [torch.autograd.grad(loss, list(net.parameters())) for loss in losses]
    torch.testing.assert_close(*losses, atol=1e-3, rtol=0.0)  # shares of the buffer's heads differ with the length
    assert all(relative(a, b) < 0.01 for a, b in zip(*grads, strict=True))


def test_signals_are_told_though_another_episode_follows() -> None:
    torch.manual_seed(0)
    net = example.Judge()
    losses = list(example.train(net, 90))
    assert losses[-1] < 0.3 * losses[0] and net.right(example.packed(example.episodes(200))) > 0.9
    assert net.begin.grad is not None and net.begin.grad.any()
