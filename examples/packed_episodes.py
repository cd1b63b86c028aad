"""Episodes of many lengths, packed into a few rows that begin anew where one ends.

    python examples/packed_episodes.py

At its first step each episode shows one of four signals, and noise after that; at its last step the net is to say which
it was. `resets` keeps episodes apart: no state and no gradient crosses from one into the next. They begin from a state
that is learned. Padding the same episodes to the longest would take rows that are half empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

import revtune as rt

SIGNALS, FEATURES, IGNORED = 4, 6, -100


class Episode(NamedTuple):
    """An episode: what is seen, (T, F), and which signal it was."""

    seen: Tensor
    signal: int


class Rows(NamedTuple):
    """Episodes in rows.

    Attributes:
        seen: (T, B, F).
        targets: the signal at the last step of each episode, IGNORED elsewhere, (T, B).
        resets: where episodes begin, (T, B).
        lengths: steps of each row, (B,).
    """

    seen: Tensor
    targets: Tensor
    resets: Tensor
    lengths: Tensor


def episodes(count: int, shortest: int = 5, longest: int = 30) -> list[Episode]:
    """Random episodes."""
    found = []
    for _ in range(count):
        signal, steps = int(torch.randint(SIGNALS, ())), int(torch.randint(shortest, longest + 1, ()))
        seen = 0.3 * torch.randn(steps, FEATURES)
        seen[0, signal] += 2.0
        found.append(Episode(seen, signal))
    return found


def in_rows(rows: Sequence[Sequence[Episode]]) -> Rows:
    """Rows of episodes, one after another in each, padded where a row ends early."""
    lengths = [sum(len(episode.seen) for episode in row) for row in rows]
    steps, count = max(lengths), len(rows)
    seen, resets = torch.zeros(steps, count, FEATURES), torch.zeros(steps, count, dtype=torch.bool)
    targets = torch.full((steps, count), IGNORED)
    for number, row in enumerate(rows):
        first = 0
        for episode in row:
            last = first + len(episode.seen)
            seen[first:last, number], targets[last - 1, number] = episode.seen, episode.signal
            resets[first, number] = True
            first = last
    return Rows(seen, targets, resets, torch.tensor(lengths))


def packed(found: Sequence[Episode], count: int = 8) -> Rows:
    """Episodes in so many rows, each in the one that is shortest so far."""
    rows: list[list[Episode]] = [[] for _ in range(count)]
    filled = [0] * count
    for episode in sorted(found, key=lambda episode: -len(episode.seen)):
        shortest = filled.index(min(filled))
        rows[shortest].append(episode)
        filled[shortest] += len(episode.seen)
    return in_rows(rows)


class Judge(nn.Module):
    """Tells the signal that an episode began with."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.rnn = rt.RevGRU(FEATURES, hidden)
        self.head = rt.LinearCrossEntropy(hidden, SIGNALS, ignore_index=IGNORED)
        self.begin = nn.Parameter(torch.zeros(1, 1, hidden))

    def loss(self, rows: Rows) -> Tensor:
        """The mean over episodes."""
        loss, _ = rt.rewind_loss(
            self.rnn, rows.seen, rows.targets, readout=self.head, lengths=rows.lengths, resets=rows.resets,
            reset_state=self.begin,
        )  # fmt: skip
        return loss

    @torch.no_grad()
    def right(self, rows: Rows) -> float:
        """The share of episodes whose signal it tells."""
        y, _ = self.rnn(rows.seen, resets=rows.resets, reset_state=self.begin)
        asked = rows.targets != IGNORED
        told = self.head.logits(y[asked]).argmax(-1)
        return float((told == rows.targets[asked]).float().mean())


def train(net: Judge, updates: int, count: int = 64) -> Iterator[float]:
    """The loss of each update."""
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(updates):
        loss = net.loss(packed(episodes(count)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def main() -> None:
    """Train, and tell what packing saves."""
    torch.manual_seed(0)
    net, test = Judge(), episodes(500)
    few, many = packed(test), in_rows([[episode] for episode in test])
    print(f"{len(test)} episodes: {few.targets.numel():,} positions in 8 rows, {many.targets.numel():,} padded")
    for update, loss in enumerate(train(net, 150), 1):
        if update % 30 == 0:
            print(f"update {update}: loss {loss:.3f}, {net.right(few):.0%} of unseen episodes told")


if __name__ == "__main__":
    main()
