"""What `rewind_loss` pays for watching its surroundings: a training step with the checks against one without them.

    python benchmarks/watching.py [--rounds 31]

Both steps run in one process and take turns, every other round backwards; a figure is the median of the rounds' ratios.
Run it on a quiet machine. The kernel's own look at each tensor's storage, some 50 ns a tensor, is in both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median, quantiles
from typing import NamedTuple

import torch
from torch import nn

import revtune as rt
from revtune.program.bench.measuring import TURN, turns, warmed_up
from revtune.reversible.streams.surroundings import Surroundings

Net = type[rt.RevGRU] | type[rt.RevLSTM]


class Shape(NamedTuple):
    """A training step of a language model, and the ratio that it may cost at most."""

    steps: int
    hidden: int
    words: int
    rows: int
    goal: float


SHAPES = (Shape(1000, 128, 256, 20, 1.01), Shape(70, 650, 10_000, 20, 1.03))
NETS: tuple[Net, ...] = (rt.RevGRU, rt.RevLSTM)
CHECKS = ("watch", "watch_net", "watch_held", "glance", "compare")


def training_step(net: Net, shape: Shape) -> Callable[[], None]:
    """A step that embeds, runs, reads out and goes back; gradients are dropped."""
    torch.manual_seed(0)
    table, rnn = nn.Embedding(shape.words, shape.hidden), net(shape.hidden, shape.hidden)
    head = rt.LinearCrossEntropy(shape.hidden, shape.words)
    tokens = torch.randint(shape.words, (shape.steps + 1, shape.rows))
    modules = nn.ModuleList([table, rnn, head])

    def step() -> None:
        loss, _ = rt.rewind_loss(rnn, tokens[:-1], tokens[1:], encode=table, readout=head)
        loss.backward()
        modules.zero_grad(set_to_none=True)

    return step


@contextmanager
def unwatched() -> Iterator[None]:
    """Within this block nothing is watched."""
    checks = {name: getattr(Surroundings, name) for name in CHECKS}
    for name in CHECKS:
        setattr(Surroundings, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, check in checks.items():
            setattr(Surroundings, name, check)


def ratios(net: Net, shape: Shape, rounds: int) -> list[float]:
    """Time with the checks over time without them, round by round."""
    step = training_step(net, shape)

    def step_unwatched() -> None:
        with unwatched():
            step()

    steps = {"watched": step, "unwatched": step_unwatched}
    seconds = turns(steps, rounds, warmed_up(steps, TURN))
    return [one / other for one, other in zip(seconds["watched"], seconds["unwatched"], strict=True)]


def main(args: Sequence[str] | None = None, shapes: Iterable[Shape] = SHAPES) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args(args).rounds
    torch.set_num_threads(1)
    print("ratio of a whole step, median (quartiles) of", rounds, "rounds, one thread", flush=True)
    for shape in shapes:
        for net in NETS:
            found = ratios(net, shape, rounds)
            low, _, high = quantiles(found, n=4)
            print(
                f"{net.__name__} T={shape.steps} H={shape.hidden} V={shape.words} B={shape.rows}: "
                f"{median(found):.4f} ({low:.4f}..{high:.4f}), at most {shape.goal}",
                flush=True,
            )


if __name__ == "__main__":
    main()
