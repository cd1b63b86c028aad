"""Time and storage of training steps whose rows begin anew every so many steps, over those of one long row.

    python benchmarks/resets.py --every 50

Both take turns in one process, and medians of ratios are told.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

import revtune as rt
from revtune.program.bench.measuring import turns

STEPS, ROWS, INPUTS, HIDDEN, WORDS = 1000, 32, 32, 128, 50


def step(rnn: rt.RevGRU | rt.RevLSTM, head: rt.LinearCrossEntropy, x: Tensor, targets: Tensor, resets: Tensor | None,
         *, streamed: bool) -> None:  # fmt: skip
    """A training step without its update: by `rewind_loss`, or by the layer and all its outputs."""
    if streamed:
        loss, _ = rt.rewind_loss(rnn, x, targets, readout=head, resets=resets)
    else:
        loss = rnn(x, resets=resets)[0].square().mean()
    loss.backward()


def main() -> None:
    """Measure both cells, streamed and not."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--every", type=int, default=50, help="steps of an episode")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    x, targets = torch.randn(STEPS, ROWS, INPUTS), torch.randint(WORDS, (STEPS, ROWS))
    none, resets = torch.zeros(STEPS, ROWS, dtype=torch.bool), torch.zeros(STEPS, ROWS, dtype=torch.bool)
    resets[asked.every :: asked.every] = True
    for kind in (rt.RevGRU, rt.RevLSTM):
        for streamed in (True, False):
            rnn, head = kind(INPUTS, HIDDEN), rt.LinearCrossEntropy(HIDDEN, WORDS)
            cases = {"one row": None, "resets of none": none, "resets": resets}
            runs: dict[str, Callable[[], object]] = {
                name: partial(step, rnn, head, x, targets, at, streamed=streamed) for name, at in cases.items()
            }
            stored = []
            for run in runs.values():
                with rt.meter(peak=False) as used:
                    run()  # does not count
                stored.append(used.stored_bits)
            times = turns(runs, asked.rounds)
            by = {name: median(a / b for a, b in zip(times[name], times["one row"], strict=True)) for name in runs}
            way = "rewind_loss" if streamed else "layer"
            told = f"{by['resets of none']:.3f} of its time where none begins anew, {by['resets']:.3f} with resets"
            bits = f"; {stored[2] / stored[0]:.2f} times its stored bits" if stored[0] else ""
            print(f"{kind.__name__} {way}: {median(times['one row']):.3f} s; {told}{bits}", flush=True)


if __name__ == "__main__":
    main()
