"""A tagger whose tags depend on one another: a linear-chain CRF (Lafferty et al. 2001) above a RevLSTM that rewinds.

    python examples/crf_tagger.py

With scores e of tags at each step and scores m of moves from tag to tag, a row of tags y has::

    log p(y) = sum_t e_t[y_t] + sum_t m[y_{t-1}, y_t] - log sum over all rows of tags of the exponential of the same

The sum over all rows runs along the whole sequence, so the loss wants all scores at once: `rewind_outputs` keeps them,
and no output of the net. The made-up task marks names in noise: B begins one, I goes on with it, O is outside.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import revtune as rt

OUTSIDE, BEGIN, INSIDE = range(3)
TAGS = 3


class Chain(nn.Module):
    """A linear-chain CRF of scores (T, B, N) and lengths (B,)."""

    def __init__(self, tags: int) -> None:
        super().__init__()
        self.moves, self.first = nn.Parameter(torch.zeros(tags, tags)), nn.Parameter(torch.zeros(tags))

    def forward(self, scores: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """The negative log likelihood of tags (T, B), a step."""
        total, right = self.first + scores[0], self.first[tags[0]] + self._of(scores[0], tags[0])
        for step in range(1, len(scores)):
            runs = lengths > step
            moved = self.moves[tags[step - 1], tags[step]] + self._of(scores[step], tags[step])
            right = right + torch.where(runs, moved, 0.0)
            following = (total[:, :, None] + self.moves).logsumexp(1) + scores[step]
            total = torch.where(runs[:, None], following, total)
        return (total.logsumexp(-1) - right).sum() / lengths.sum()

    @staticmethod
    def _of(scores: Tensor, tags: Tensor) -> Tensor:
        """The scores (B,) of these tags among those of all, (B, N)."""
        return scores.gather(1, tags[:, None])[:, 0]

    @torch.no_grad()
    def best(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """The likeliest tags, (T, B), by Viterbi's algorithm; at padding the last one goes on."""
        total, froms = self.first + scores[0], []
        for step in range(1, len(scores)):
            moved, source = (total[:, :, None] + self.moves).max(1)
            runs = (lengths > step)[:, None]
            total = torch.where(runs, moved + scores[step], total)
            froms.append(torch.where(runs, source, torch.arange(scores.shape[2])))
        found = [total.argmax(-1)]
        for source in reversed(froms):
            found.append(self._of(source, found[-1]))
        return torch.stack(found[::-1])


class Tagger(nn.Module):
    """Words to tags."""

    def __init__(self, words: int, hidden: int = 32) -> None:
        super().__init__()
        self.words, self.rnn = nn.Embedding(words, 16), rt.RevLSTM(16, hidden)
        self.head, self.chain = nn.Linear(hidden, TAGS), Chain(TAGS)

    def scores(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Those of each tag at each step, (T, B, N)."""
        scores: Tensor = rt.rewind_outputs(
            self.rnn, tokens, encode=self.words, readout=self.head, lengths=lengths
        )[0]  # fmt: skip
        return scores


def names(steps: int = 30, rows: int = 16, words: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Words (T, B), tags and lengths: names of two to four words, of which only the first tells that it is one.

    The other words of a name are any words, and a fifth of all words is replaced by any other.
    """
    tags = torch.full((steps, rows), OUTSIDE)
    for row in range(rows):
        step = int(torch.randint(6, ()))
        while step + 4 < steps:
            longest = int(torch.randint(2, 5, ()))
            tags[step, row], tags[step + 1 : step + longest, row] = BEGIN, INSIDE
            step += longest + int(torch.randint(8, ()))
    count = words // 4
    tokens = torch.where(tags == BEGIN, torch.randint(count, tags.shape), torch.randint(count, words, tags.shape))
    noise = torch.rand(tags.shape) < 0.2
    return (
        torch.where(noise, torch.randint(words, tags.shape), tokens),
        tags,
        torch.randint(steps // 2, steps + 1, (rows,)),
    )


def train(tagger: Tagger, updates: int = 80) -> Iterator[float]:
    """Train the tagger. Gives the loss of each update, in nats a step."""
    optimizer = torch.optim.Adam(tagger.parameters(), lr=0.02)
    for _ in range(updates):
        tokens, tags, lengths = names()
        loss = tagger.chain(tagger.scores(tokens, lengths), tags, lengths)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


@torch.no_grad()
def right(tagger: Tagger) -> tuple[float, int]:
    """The share of new words whose tag is right, and how often a name goes on that has not begun."""
    tokens, tags, lengths = names(rows=64)
    found, live = (
        tagger.chain.best(tagger.scores(tokens, lengths), lengths),
        torch.arange(len(tokens))[:, None] < lengths,
    )
    broken = (found[1:] == INSIDE) & (found[:-1] == OUTSIDE) & live[1:]
    return float((found == tags)[live].float().mean()), int(broken.sum())


if __name__ == "__main__":
    torch.manual_seed(0)
    tagger = Tagger(20)
    for update, loss in enumerate(train(tagger)):
        if update % 20 == 0:
            print(f"update {update:2}  {loss:.3f} nats a step  {right(tagger)[0]:.1%} of new tags right")
    share, broken = right(tagger)
    print(f"{share:.1%} of new tags right, {broken} names go on that have not begun")
