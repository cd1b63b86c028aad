"""Time and storage of training steps whose rows begin anew every so many steps, over those of one long row; and time of
eight rows full of episodes, over that of the same 27 episodes each in a padded row of its own, beside full rows.

    python benchmarks/resets.py --every 50

Contestants take turns in one process, and medians of ratios are told.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch import Tensor

import revtune as rt
from revtune.program.bench.measuring import turns

STEPS, ROWS, INPUTS, HIDDEN, WORDS = 1000, 32, 32, 128, 50
EPISODES = [[1000]] * 5 + [[125] * 8] + [[142] * 7] * 2
"""Lengths of episodes, by the row that they fill."""


Net = rt.RevGRU | rt.RevLSTM


def net_of(kind: type[Net]) -> tuple[Net, rt.LinearCrossEntropy]:
    """A net and its readout."""
    return kind(INPUTS, HIDDEN), rt.LinearCrossEntropy(HIDDEN, WORDS)


def streamed(kind: type[Net], steps: int, rows: int, **given: Tensor | None) -> Callable[[], object]:
    """A training step by `rewind_loss`, without its update."""
    (rnn, head), x, targets = net_of(kind), torch.randn(steps, rows, INPUTS), torch.randint(WORDS, (steps, rows))
    return lambda: rt.rewind_loss(rnn, x, targets, readout=head, **given)[0].backward()  # type: ignore[arg-type]


def layered(kind: type[Net], steps: int, rows: int, **given: Tensor | None) -> Callable[[], object]:
    """The same by the layer and all its outputs."""
    (rnn, _), x = net_of(kind), torch.randn(steps, rows, INPUTS)
    return lambda: rnn(x, **given)[0].square().mean().backward()


def often(every: int) -> Tensor:
    """Resets of all rows every so many steps."""
    resets = torch.zeros(STEPS, ROWS, dtype=torch.bool)
    resets[every::every] = True
    return resets


def packed() -> dict[str, Tensor | None]:
    """Where episodes begin in the rows that they fill, and how long these rows are."""
    resets = torch.zeros(STEPS, len(EPISODES), dtype=torch.bool)
    for row, lengths in enumerate(EPISODES):
        resets[torch.tensor([0, *lengths[:-1]]).cumsum(0), row] = True
    return {"resets": resets, "lengths": torch.tensor([sum(lengths) for lengths in EPISODES])}


def compare(runs: Mapping[str, Callable[[], object]], rounds: int) -> tuple[list[float], list[int]]:
    """Times over the first one's, medians of rounds, and stored bits."""
    stored = []
    for run in runs.values():
        with rt.meter(peak=False) as used:
            run()  # does not count
        stored.append(used.stored_bits)
    times = list(turns(runs, rounds).values())
    return [median(a / b for a, b in zip(each, times[0], strict=True)) for each in times], stored


def main() -> None:
    """Measure both cells, streamed and not."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--every", type=int, default=50, help="steps of an episode")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    alone = [length for lengths in EPISODES for length in lengths]
    for kind in (rt.RevGRU, rt.RevLSTM):
        for way in (streamed, layered):
            cases = {"never": None, "of none": often(STEPS), "often": often(asked.every)}
            (_, none, some), stored = compare(
                {name: way(kind, STEPS, ROWS, resets=at) for name, at in cases.items()}, asked.rounds
            )
            bits = f", {stored[2] / stored[0]:.2f} of its stored bits" if stored[0] else ""
            told = f"with resets that are never set {none:.3f} of the time, with resets {some:.3f}{bits}"
            print(f"{kind.__name__} {way.__name__}: {told}", flush=True)
        many, few = len(alone), len(EPISODES)
        rows = {"padded": streamed(kind, STEPS, many, lengths=torch.tensor(alone)),
                "packed": streamed(kind, STEPS, few, **packed()),
                "all full": streamed(kind, STEPS, many), "few full": streamed(kind, STEPS, few)}  # fmt: skip
        (_, ratio, all_full, few_full), _ = compare(rows, asked.rounds)
        print(f"{kind.__name__}: {many} episodes in {few} rows {ratio:.3f} of the time of padded ones", flush=True)
        print(
            f"    padded ones {1 / all_full:.3f} of full ones; {few} full ones {few_full / all_full:.3f} of {many} full"
        )


if __name__ == "__main__":
    main()
