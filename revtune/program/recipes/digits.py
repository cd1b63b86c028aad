"""Spoken digits from the raw waveform, a label after up to 18,262 samples; --size full for a step a sample.

revtune train digits --frame 4                       frames of 4 samples instead of 16
revtune train digits --frame 1 --speaker jackson     raw samples, tested on a speaker who was never heard
"""

from __future__ import annotations

from revtune.program.signals.digits import DigitsStudy, DigitsTask
from revtune.program.tasks.task import Learning, Size

kind = "signal"


def study(size: Size = "small") -> DigitsStudy:
    """Frames of 16 samples for some minutes on one core, or raw samples."""
    full = size == "full"
    learning = Learning(
        steps=10_000 if full else 1_000, batch=32, optimizer="adam", lr=5e-3, schedule="cosine", clip=1.0,
        valid_every=250 if full else 100,
    )  # fmt: skip
    return DigitsStudy(
        frame=1 if full else 16, hidden=128 if full else 64, lasting=1_000 if full else 250, learning=learning
    )  # fmt: skip


task = DigitsTask
