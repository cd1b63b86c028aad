"""Heartbeats at each sample of half an hour of ECG; --size full for a gradient over all that is learnt from.

revtune train ecg --length None --batch 1 --steps 50      390,000 samples in each gradient
"""

from __future__ import annotations

from revtune.program.signals.beats import BeatsStudy, BeatsTask
from revtune.program.tasks.task import Learning, Size

kind = "signal"


def study(size: Size = "small") -> BeatsStudy:
    """Windows of ten seconds for a minute on one core, or the recording's first 18 minutes in each gradient."""
    full = size == "full"
    learning = Learning(
        steps=300, batch=1 if full else 8, optimizer="adam", lr=1e-2, schedule="cosine", clip=1.0, valid_every=25
    )
    return BeatsStudy(
        hidden=64 if full else 32, lasting=40, length=None if full else 3_600, learning=learning
    )  # fmt: skip


task = BeatsTask
