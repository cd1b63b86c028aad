"""How a learning rate falls over a run: one formula for language models, tasks and translators."""

from __future__ import annotations

import math
from typing import Literal

FALL = 4.0
"""What a plateau divides the rate by, as in MacKay et al. 2018 and 2019, section 5.1."""

LOWEST = 0.05
"""The share of the highest rate that a cosine ends at; it is above 0, so that the last updates still learn."""


def scheduled(
    rate: float, schedule: Literal["constant", "cosine", "plateau"], *, done: float, falls: int, fall: float = FALL
) -> float:
    """The learning rate that a schedule makes of the highest one.

    Args:
        rate: the highest.
        schedule: its name.
        done: the share of the run that lies behind, for a cosine.
        falls: how many plateaus there were.
        fall: what each of them divides the rate by.
    """
    if schedule == "plateau":
        return rate / fall**falls
    if schedule == "constant":
        return rate
    return rate * (LOWEST + (1 - LOWEST) * (1 + math.cos(math.pi * done)) / 2)
