"""The stored way back plays as the steps did, advantages are those of episodes apart, and poles stand."""

from typing import Any

import pytest
import torch

NEEDS = ("gymnasium",)


def test_a_rollout_is_read_again_as_it_was_played(example: Any) -> None:
    """Rows go on in a second rollout, and episodes begin within both."""
    torch.manual_seed(0)
    player = example.Player(example.Policy(), rows=4, seed=0)
    for _ in range(2):
        state = player.state
        rollout, values = player.play(64)
        outputs = player.policy(rollout.seen, rollout.begins, state)
        likelihoods = outputs["scores"].log_softmax(-1).gather(-1, rollout.actions).squeeze(-1)
        torch.testing.assert_close(likelihoods, rollout.likelihoods, atol=1e-5, rtol=0.0)
        torch.testing.assert_close(outputs["value"], values[:-1], atol=1e-5, rtol=0.0)


def test_episodes_end_where_poles_have_fallen_and_begin_after_that(example: Any) -> None:
    """As what is seen says: carts begin near the middle, poles upright; they fall at 12 degrees, shown as 2.09."""
    torch.manual_seed(0)
    rollout, _ = example.Player(example.Policy(), rows=4, seed=0).play(64)
    assert rollout.begins[0].all() and rollout.begins[1:].any()
    assert torch.equal(rollout.begins[1:], ~rollout.acts[:-1]) and torch.equal(rollout.falls[:-1], ~rollout.acts[1:])
    over = (rollout.seen.abs() > torch.tensor([2.4, 2.09])).any(-1)
    assert torch.equal(over, ~rollout.acts)
    assert (rollout.seen[rollout.begins].abs() <= torch.tensor([0.05, 0.5])).all()


def test_advantages_are_those_of_episodes_apart(example: Any) -> None:
    """One episode falls, one is stopped, the last goes on: each as the sum over its own steps says."""
    generator = torch.Generator().manual_seed(1)
    steps, falls, last = 12, 3, [4, 9]  # actions 0 to 3 and 5 to 8, their last views at 4 and 9, then 10 and 11
    values = torch.randn(steps + 1, 1, generator=generator)
    acts, fallen = torch.ones(steps, 1, dtype=torch.bool), torch.zeros(steps, 1, dtype=torch.bool)
    acts[last], fallen[falls] = False, True
    rewards = torch.rand(steps, 1, generator=generator) * acts
    nothing = torch.zeros(steps, 1)
    rollout = example.Step(nothing, nothing, acts, nothing, nothing, values[:-1], rewards, fallen)
    wanted = torch.zeros(steps, 1)
    for first, end in ((0, 4), (5, 9), (10, 12)):
        following = [0.0 if step == falls else float(values[step + 1]) for step in range(first, end)]
        surprises = [
            float(rewards[step]) + example.DISCOUNT * after - float(values[step])
            for step, after in zip(range(first, end), following, strict=True)
        ]
        for step in range(first, end):
            rest = surprises[step - first :]
            wanted[step] = sum((example.DISCOUNT * example.SMOOTHING) ** k * each for k, each in enumerate(rest))
    torch.testing.assert_close(example.advantages(rollout, values), wanted)


@pytest.mark.slow
def test_a_net_that_remembers_balances_the_pole_and_one_that_forgets_does_not(example: Any) -> None:
    scores = {}
    for forgetful in (False, True):
        torch.manual_seed(0)
        player = example.Player(example.Policy(forgetful=forgetful), rows=32, seed=0)
        first, *_, scores[forgetful] = example.train(player, 30)
        assert first < 40
    assert scores[False] > 250 and scores[True] < 100
