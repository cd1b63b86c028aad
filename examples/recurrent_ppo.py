"""Recurrent PPO (Schulman et al. 2017): a pole is balanced by a net that is not told how fast it falls.

    pip install '.[examples]'
    python examples/recurrent_ppo.py
    python examples/recurrent_ppo.py forgetful

Of gymnasium's CartPole the net sees the cart's place and the pole's angle; to know their speeds it must remember. Rows
are full of episodes, and `resets` says where one begins. The loss wants the scores of all actions and the values of all
states at once: `rewind_outputs` keeps these, and no output of the net. The forgetful net is the same one, begun anew at
every step: what a policy without memory comes to.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

import gymnasium
import torch
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch import Tensor, nn

import revtune as rt

DISCOUNT, SMOOTHING, CLIP = 0.99, 0.95, 0.2
SHOWN = torch.tensor([0, 2])
"""Of a cart's place and speed, and its pole's angle and speed."""


class Policy(nn.Module):
    """What was seen since the episode began, to scores of both actions and the value of the state."""

    def __init__(self, hidden: int = 64, *, forgetful: bool = False) -> None:
        super().__init__()
        self.rnn, self.forgetful = rt.RevGRU(len(SHOWN), hidden), forgetful
        self.action, self.value = nn.Linear(hidden, 2), nn.Linear(hidden, 1)

    def heads(self, y: Tensor) -> dict[str, Tensor]:
        """Both heads of outputs (..., H)."""
        return {"scores": self.action(y), "value": self.value(y).squeeze(-1)}

    def forward(self, seen: Tensor, begins: Tensor, state: Tensor) -> dict[str, Tensor]:
        """Both heads at all steps of rows (T, B, 2) full of episodes."""
        outputs: dict[str, Tensor] = rt.rewind_outputs(
            self.rnn, seen, readout=self.heads, state=state, resets=begins | self.forgetful
        )[0]  # fmt: skip
        return outputs

    def step(self, seen: Tensor, begins: Tensor, state: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Both heads at one step (B, 2), and the state after it: that of episodes which begin is zero before."""
        y, state = self.rnn(seen[None], state.masked_fill((begins | self.forgetful)[:, None], 0.0))
        return self.heads(y[0]), state


class Step(NamedTuple):
    """What happened at a step of all rows, (B,) each; stacked, at all steps of a rollout, (T, B).

    Attributes:
        seen: (B, 2).
        begins: whether this is the first that an episode shows.
        acts: whether the action counts: it does not where this is the last that an episode shows.
        actions, likelihoods: the actions that were drawn, and the logarithms of their probabilities.
        values: of the states, as the policy took them to be.
        rewards: one for each step that a pole stands, here as a share of all that can come, so that values are near 1.
        falls: whether the pole falls, and nothing comes of what follows.
    """

    seen: Tensor
    begins: Tensor
    acts: Tensor
    actions: Tensor
    likelihoods: Tensor
    values: Tensor
    rewards: Tensor
    falls: Tensor


class Player:
    """Plays many games at once, and goes on with them in the next rollout."""

    def __init__(self, policy: Policy, rows: int, seed: int) -> None:
        games = gymnasium.make_vec("CartPole-v1", rows, vectorization_mode="vector_entry_point")
        self.policy, self.games = policy, RecordEpisodeStatistics(games)
        self.state = torch.zeros(1, rows, policy.rnn.hidden_size)
        self.begins, self.ends = torch.ones(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.bool)
        self.seen = self._shown(self.games.reset(seed=seed)[0])

    @torch.no_grad()
    def play(self, steps: int) -> tuple[Step, Tensor]:
        """Play so many steps of all games. Returns them, and all values (T + 1, B), that of the state reached too."""
        rollout = Step(*map(torch.stack, zip(*[self._step() for _ in range(steps)], strict=True)))
        reached = self.policy.step(self.seen, self.begins, self.state)[0]["value"]
        return rollout, torch.cat([rollout.values, reached[None]])

    def _step(self) -> Step:
        outputs, self.state = self.policy.step(self.seen, self.begins, self.state)
        logs = outputs["scores"].log_softmax(-1)
        actions = logs.exp().multinomial(1)
        seen, begins, acts = self.seen, self.begins, ~self.ends
        shown, *given, _ = self.games.step(actions.squeeze(-1).numpy())
        rewards, falls, stops = map(torch.from_numpy, given)
        self.begins, self.ends = self.ends, falls | stops  # an episode's last view takes a step of its own
        self.seen = self._shown(shown)
        likelihoods, rewards = logs.gather(-1, actions).squeeze(-1), (1 - DISCOUNT) * rewards.float()
        return Step(seen, begins, acts, actions, likelihoods, outputs["value"], rewards, falls)

    def score(self) -> float:
        """The mean return of the last hundred episodes."""
        return sum(self.games.return_queue) / max(len(self.games.return_queue), 1)

    @staticmethod
    def _shown(state: object) -> Tensor:
        return torch.as_tensor(state)[:, SHOWN] * torch.tensor([1.0, 10.0])  # both of about one at the edge


def advantages(rollout: Step, values: Tensor) -> Tensor:
    """How much better than its value each step went, (T, B), smoothed (Schulman et al. 2016); 0 where none acts.

    An episode that is stopped and has not fallen is worth what its last view is, which is a step of its own.
    """
    found, following = torch.zeros_like(rollout.values), torch.zeros_like(rollout.values[0])
    for step in range(len(found) - 1, -1, -1):
        surprise = rollout.rewards[step] + DISCOUNT * values[step + 1] * ~rollout.falls[step] - values[step]
        following = found[step] = (surprise + DISCOUNT * SMOOTHING * following) * rollout.acts[step]
    return found


def loss(policy: Policy, rollout: Step, state: Tensor, gains: Tensor) -> Tensor:
    """PPO's clipped loss, the values' squared error and a little entropy, at steps that act."""
    outputs = policy(rollout.seen, rollout.begins, state)
    logs, acts = outputs["scores"].log_softmax(-1), rollout.acts
    ratio = (logs.gather(-1, rollout.actions).squeeze(-1) - rollout.likelihoods).exp()
    scaled = (gains - gains[acts].mean()) / (gains[acts].std() + 1e-8)
    clipped = torch.minimum(ratio * scaled, ratio.clamp(1 - CLIP, 1 + CLIP) * scaled)
    error = (outputs["value"] - rollout.values - gains).square()
    entropy = -(logs.exp() * logs).sum(-1)
    return (error - clipped - 0.01 * entropy)[acts].mean()


def train(player: Player, rollouts: int, steps: int = 128, epochs: int = 4, groups: int = 4) -> Iterator[float]:
    """Train the player's policy. Gives the mean return of the last hundred episodes after each rollout."""
    policy = player.policy
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    for _ in range(rollouts):
        state = player.state
        rollout, values = player.play(steps)
        gains = advantages(rollout, values)
        for _ in range(epochs):
            for rows in torch.randperm(len(player.seen)).chunk(groups):
                some = Step(*(each[:, rows] for each in rollout))
                optimizer.zero_grad()
                loss(policy, some, state[:, rows], gains[:, rows]).backward()
                nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
                optimizer.step()
        yield player.score()


def main(arguments: list[str]) -> None:
    """Train, and tell how long poles stand: 500 steps are the most."""
    torch.manual_seed(0)
    player = Player(Policy(forgetful="forgetful" in arguments), rows=32, seed=0)
    for rollout, score in enumerate(train(player, 60), 1):
        if rollout % 10 == 0:
            print(f"{rollout * 128 * 32:7,} steps  poles stand {score:5.1f} steps", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
