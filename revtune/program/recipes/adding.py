"""The adding task: two marked numbers of --length are to be added in the end; --size full for 2,000 of them.

revtune train adding --model lstm --truncate 100      a gradient that reaches few of the marks
"""

from __future__ import annotations

from revtune.program.signals.memory_tasks import AddingTask, MemoryStudy
from revtune.program.tasks.task import Learning, Size

kind = "signal"


def study(size: Size = "small") -> MemoryStudy:
    """200 numbers, or 2,000 and longer learning."""
    if size == "full":
        learning = Learning(steps=20_000, batch=64, optimizer="adam", lr=1e-3, clip=1.0, valid_every=500)
        return MemoryStudy(length=2_000, hidden=128, lasting=2_000, learning=learning)
    learning = Learning(steps=1_000, batch=64, optimizer="adam", lr=2e-3, clip=1.0, valid_every=200)
    return MemoryStudy(length=200, hidden=64, lasting=200, learning=learning)


task = AddingTask
