"""What a language model loses whose encoder and readout multiply with fewer bits, beside one in float32.

    python -m benchmarks.lowered [--steps 400] [--seeds 3] [--data FOLDER]

Words of the Penn Treebank, the 2,000 most frequent ones; an embedding, a linear layer, a RevGRU of 128 units, whose
recurrence is in float32 throughout, and a LinearCrossEntropy. All ways begin with the same weights and read the same
batches of 20 rows and 35 steps. The loss is that of the validation text, in nats a word, by each way's own arithmetic.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor, nn

import revtune as rt
from revtune.program.data.text import Segment, after, segment, streams
from revtune.program.data.text_sources import Text, load
from revtune.program.tables import markdown
from revtune.reversible.kernel.lowered_matmuls import Precision

WIDTH, ROWS, STEPS = 128, 20, 35


class Way(NamedTuple):
    """How a model multiplies: its readout's precision, and whether its encoder runs under autocast to bfloat16."""

    readout: Precision | None = None
    autocast: bool = False

    def context(self) -> AbstractContextManager[object]:
        """What a step runs in."""
        return torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext()


WAYS = {
    "float32": Way(),
    "readout in float16": Way("float16"),
    "readout in bfloat16": Way("bfloat16"),
    "readout in bfloat16, encoder under autocast": Way("bfloat16", autocast=True),
}


class Model(nn.Module):
    """A language model of so many words.

    Args:
        words: how many.
        way: how it multiplies.
        seed: of its first weights.
    """

    def __init__(self, words: int, way: Way, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.way = way
        self.encode = nn.Sequential(nn.Embedding(words, WIDTH), nn.Linear(WIDTH, WIDTH))
        self.rnn, self.readout = rt.RevGRU(WIDTH, WIDTH), rt.LinearCrossEntropy(WIDTH, words, precision=way.readout)

    def forward(self, batch: Segment, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mean loss and the last state."""
        state = None if batch.first else state
        with self.way.context():
            loss, last = rt.rewind_loss(
                self.rnn, batch.inputs, batch.targets, encode=self.encode, readout=self.readout, state=state
            )
        assert isinstance(last, Tensor)
        return loss, last


def trained(model: Model, tokens: Tensor, steps: int) -> None:
    """Train a model for so many steps."""
    optimizer, state = torch.optim.Adam(model.parameters(), 2e-3), None
    for batch in batches(tokens, steps):
        optimizer.zero_grad()
        loss, state = model(batch, state)
        loss.backward()
        optimizer.step()


@torch.no_grad()
def held_out(model: Model, tokens: Tensor) -> float:
    """The mean loss of a text."""
    total, state, count = 0.0, None, 0
    for batch in batches(tokens, (len(tokens) - 2) // STEPS + 1):
        loss, state = model(batch, state)
        total, count = total + loss.item() * batch.targets.numel(), count + batch.targets.numel()
    return total / count


def batches(tokens: Tensor, steps: int) -> Iterator[Segment]:
    """So many segments of a text (N, B), from its beginning on, and again."""
    position = 0
    for _ in range(steps):
        yield segment(tokens, position, STEPS)
        position = after(tokens, position, STEPS)


def main(args: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Train all ways with all seeds and print a table; held-out losses by way."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=None)
    asked = parser.parse_args(args)
    corpus = load(Text(source="ptb", unit="word", data=asked.data, words=None, max_words=2000))
    learnt, valid = streams(corpus.train, ROWS, name="training"), streams(corpus.valid, ROWS, name="validation")
    losses: dict[str, list[float]] = {name: [] for name in WAYS}
    for seed in range(asked.seeds):
        for name, way in WAYS.items():
            model = Model(len(corpus.vocabulary), way, seed)
            trained(model, learnt, asked.steps)
            losses[name].append(held_out(model, valid))
            print(f"seed {seed}, {name}: {losses[name][-1]:.4f}", flush=True)
    print(markdown(("way", "loss", "more than float32", "at most"), table(losses)))
    return losses


def table(losses: dict[str, list[float]]) -> Iterator[tuple[str, ...]]:
    """A row for each way: its mean loss, and by how much it is above float32's of the same seed, mean and most."""
    for name, each in losses.items():
        more = [one - other for one, other in zip(each, losses["float32"], strict=True)]
        yield name, f"{mean(each):.4f}", f"{mean(more):+.4f}", f"{max(more):+.4f}"


if __name__ == "__main__":
    main()
