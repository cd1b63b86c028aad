"""A day of ECG, 31,104,000 samples at 360 Hz, in one exact gradient.

    python -m benchmarks.day --data FOLDER [--hours 24] [--out FILE]

The record of half an hour is repeated, with noise of 10 microvolts that never repeats. A RevGRU of 16 units tells at
each sample whether a beat is near, as recipe `ecg` asks; checkpoints are placed by themselves. Samples are int16 and
answers uint8, and become numbers chunk by chunk. The first minute is learnt from before, so that nothing is made or
imported in the step that counts. Memory is that step's peak of resident anonymous memory above what was there before.

Figures are kept in benchmarks/results/signals/day.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import revtune as rt
from revtune.program.bench.measuring import keep_to, peak_of
from revtune.program.data.heart import Heart, heart
from revtune.program.machine import versions
from revtune.program.signals.beats import answers
from revtune.program.signals.net import begin_lasting

UNITS = 16

NOISE = 2
"""Standard deviation, in steps of the converter, of which a millivolt has 200."""

BLOCK = 650_000
"""Samples that are made at once."""


def signal(found: Heart, steps: int) -> tuple[Tensor, Tensor]:
    """Samples (T, 1, 1) as int16 and answers (T, 1) as uint8, the record repeated as often as it takes."""
    told = answers(found.beats, len(found.samples), found.rate).to(torch.uint8)
    x, y = torch.empty(steps, 1, 1, dtype=torch.int16), torch.empty(steps, 1, dtype=torch.uint8)
    for begin in range(0, steps, BLOCK):
        at = torch.arange(begin, min(begin + BLOCK, steps)) % len(told)
        noise = (NOISE * torch.randn(len(at))).round().to(torch.int16)
        x[begin : begin + BLOCK, 0, 0], y[begin : begin + BLOCK, 0] = found.samples[at] + noise, told[at]
    return x, y


def measured(found: Heart, steps: int) -> dict[str, Any]:
    """The figures of one gradient over so many samples."""
    torch.manual_seed(1)
    rnn, head = rt.RevGRU(1, UNITS), rt.LinearCrossEntropy(UNITS, 2)
    begin_lasting(rnn, 40)
    x, y = signal(found, steps)

    def encode(samples: Tensor) -> Tensor:
        return samples.float() / found.gain

    def readout(h: Tensor, told: Tensor) -> Tensor:
        loss: Tensor = head(h, told.long())
        return loss

    def gradient(last: int) -> float:
        loss, _ = rt.rewind_loss(rnn, x[:last], y[:last], encode=encode, readout=readout, checkpoint_every="auto")
        loss.backward()
        return loss.item()

    gradient(min(steps, 60 * found.rate))
    rnn.zero_grad()
    head.zero_grad()
    told: dict[str, Any] = {}

    def counted() -> None:
        began = time.perf_counter(), time.process_time()
        with rt.meter(peak=False) as used:
            told["loss"] = gradient(steps)
        told["seconds"], told["cpu_seconds"] = time.perf_counter() - began[0], time.process_time() - began[1]
        told["stored_bits"], told["bits_per_unit_step"] = used.stored_bits, used.bits_per_unit_step

    peak = peak_of(counted, torch.device("cpu"))
    norm = torch.cat([weight.grad.flatten() for weight in rnn.parameters() if weight.grad is not None]).norm().item()
    given = {"inputs": x.nbytes, "targets": y.nbytes}
    return {"steps": steps, "units": UNITS, "peak": peak, **given, **told, "gradient_norm": norm}


def main(args: Sequence[str] | None = None) -> None:
    """Take the gradient once, tell its figures and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with data sets")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    given = parser.parse_args(args)
    keep_to(1)
    found = heart("100", given.data)
    figures = measured(found, round(given.hours * 3600 * found.rate))
    sizes = f"{figures['inputs'] / 1e6:.0f} MB of inputs and {figures['targets'] / 1e6:.0f} of targets"
    print(
        f"{figures['steps']:,} steps in one gradient: {figures['seconds']:.0f} s, {figures['cpu_seconds']:.0f} of the "
        f"processor, {figures['peak'] / 1e6:.1f} MB above {sizes}; loss {figures['loss']:.4f}"
    )
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({**versions(), **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
