"""The copy task: ten symbols are said again after --length blank steps; --size full for 1,000 of them.

revtune train copy --model lstm --truncate 100      a gradient that ends before it reaches the symbols
"""

from __future__ import annotations

from revtune.program.signals.memory_tasks import CopyTask, MemoryStudy
from revtune.program.tasks.task import Learning, Size

kind = "signal"


def study(size: Size = "small") -> MemoryStudy:
    """100 blank steps and 128 units, or 1,000 and longer learning."""
    if size == "full":
        learning = Learning(steps=20_000, batch=64, optimizer="adam", lr=1e-3, clip=1.0, valid_every=500)
        return MemoryStudy(length=1_000, hidden=128, lasting=1_000, learning=learning)
    learning = Learning(steps=4_000, batch=64, optimizer="adam", lr=5e-3, clip=1.0, valid_every=200)
    return MemoryStudy(length=100, hidden=128, lasting=100, learning=learning)


task = CopyTask
