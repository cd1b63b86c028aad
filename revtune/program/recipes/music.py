"""Piano rolls: which notes sound next, of four sets by --pieces; --size full for longer learning and 200 units.

revtune train music --pieces muse --truncate 100      pieces of up to 4,273 steps, gradients over 100
"""

from __future__ import annotations

from revtune.program.signals.music import MusicStudy, MusicTask
from revtune.program.tasks.task import Learning, Size

kind = "signal"


def study(size: Size = "small") -> MusicStudy:
    """Bach's chorales and 128 units for some minutes on one core."""
    full = size == "full"
    learning = Learning(
        steps=10_000 if full else 900, batch=8, optimizer="adam", lr=2e-3, schedule="plateau", clip=1.0,
        valid_every=250 if full else 75,
    )  # fmt: skip
    return MusicStudy(hidden=200 if full else 128, learning=learning)


task = MusicTask
