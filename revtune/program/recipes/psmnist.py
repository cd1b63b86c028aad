"""MNIST pixel by pixel in one drawn order, so that neighbours are far apart; otherwise as smnist."""

from __future__ import annotations

from revtune.program.recipes.smnist import study as study
from revtune.program.signals.pixels import PixelTask

kind = "signal"


class PermutedTask(PixelTask):
    """Digits of MNIST, their pixels permuted."""

    permuted = True


task = PermutedTask
