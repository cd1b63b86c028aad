"""Seconds of `self_tuning` of a network of BERT-base's shape, on one core.

    python -m benchmarks.conversion [--rounds 5] [--width 768] [--layers 12]

They are of the processor, which other work on the machine lengthens less than those of the clock. Beside them are those
of what no conversion can do without: drawing a second weight for each that responds, as spread as the first. The
difference is the reading of sources and the changing of classes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from revtune.tuning.conversion.convert import self_tuning
from revtune.tuning.responses.responding import Responding


class Attention(nn.Module):
    """Attention over a sentence, with its residual and normalisation, as BERT has it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.dense = (nn.Linear(width, width) for _ in range(4))
        self.norm, self.drop, self.drop_weights, self.heads = nn.LayerNorm(width), nn.Dropout(), nn.Dropout(), heads

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        q, k, v = (self.by_head(layer(x)) for layer in (self.query, self.key, self.value))
        weights = self.drop_weights((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1))
        out: Tensor = self.norm(x + self.drop(self.dense((weights @ v).transpose(1, 2).flatten(2))))
        return out

    def by_head(self, x: Tensor) -> Tensor:
        """(B, T, width) to (B, heads, T, width / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """The wide layer of a block, with its residual and normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.narrow, self.act = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.GELU()
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        out: Tensor = self.norm(x + self.drop(self.narrow(self.act(self.wide(x)))))
        return out


class Block(nn.Module):
    """Attention, then the wide layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.wide = Attention(width, heads), FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        out: Tensor = self.wide(self.attention(x))
        return out


class Bert(nn.Module):
    """A classifier of BERT's shape: 109 million weights at width 768 with 12 layers."""

    def __init__(self, width: int, layers: int, words: int) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, width, padding_idx=0), nn.Embedding(512, width)
        self.norm, self.drop, self.out = nn.LayerNorm(width), nn.Dropout(), nn.Linear(width, 2)
        self.blocks = nn.ModuleList([Block(width, max(1, width // 64)) for _ in range(layers)])

    def forward(self, words: Tensor) -> Tensor:
        """(B, T) to (B, 2)."""
        x = self.drop(self.norm(self.words(words) + self.positions(torch.arange(words.shape[1])[None])))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.out(x[:, 0])
        return out


def seconds(run: Callable[[], object]) -> float:
    """Processor time of a call."""
    began = time.process_time()
    run()
    return time.process_time() - began


def draw(net: nn.Module) -> None:
    """What responses of a network, converted already, begin with."""
    for layer in net.modules():
        if isinstance(layer, Responding) and layer.response_weight is not None:
            weight = layer.weight.detach()
            torch.randn_like(weight).mul_(weight.std())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print medians over rounds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conversion", description=__doc__.split("\n")[0])
    for name, default in (("rounds", 5), ("width", 768), ("layers", 12), ("words", 30522)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rounds = []
    for _ in range(options.rounds):
        net = Bert(options.width, options.layers, options.words)
        rounds.append((seconds(lambda net=net: self_tuning(net)), seconds(lambda net=net: draw(net))))  # type: ignore[misc]
    whole, drawing = map(statistics.median, zip(*rounds, strict=True))
    rest = statistics.median(one - other for one, other in rounds)
    print(f"self_tuning {whole:.3f} s, of which drawing second weights {drawing:.3f} s, all else {rest:.3f} s")


if __name__ == "__main__":
    main()
