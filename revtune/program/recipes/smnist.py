"""MNIST pixel by pixel, 784 steps and one label; --size full for all images and 128 units.

revtune train smnist --model lstm --truncate 50      the same, with a gradient over the last 50 pixels alone
"""

from __future__ import annotations

from revtune.program.signals.pixels import PixelStudy, PixelTask
from revtune.program.tasks.task import Learning, Size

kind = "signal"


def study(size: Size = "small") -> PixelStudy:
    """8,000 images for some minutes on one core, or all."""
    if size == "full":
        learning = Learning(steps=20_000, batch=128, optimizer="adam", lr=1e-3, clip=1.0, valid_every=400)
        return PixelStudy(hidden=128, lasting=100, images=None, tested=None, learning=learning)
    learning = Learning(steps=2_000, batch=64, optimizer="adam", lr=5e-3, schedule="cosine", clip=1.0, valid_every=125)
    return PixelStudy(hidden=64, lasting=100, learning=learning)


task = PixelTask
