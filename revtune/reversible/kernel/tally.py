"""How often each forget integer is used, which tells the fewest bits that could be stored; counted where one meters."""

from __future__ import annotations

import torch
from torch import Tensor

from revtune.reversible import meter as metering
from revtune.reversible.cells import fixed


def new_tally(like: Tensor) -> Tensor | None:
    """Zeros, on a tensor's device, in which to count how often each forget integer is used, if somebody is metering."""
    return like.new_zeros(fixed.FORGET_ONE + 1, dtype=torch.int64) if metering.active() else None


def tallied_bits(tally: Tensor) -> float:
    """The bits that multiplying by the tallied forget integers loses, log2(1024 / zi) each."""
    lost = 10.0 - torch.arange(fixed.FORGET_ONE + 1, dtype=torch.float64).clamp_min(1).log2()
    return float(tally.cpu().double() @ lost)
