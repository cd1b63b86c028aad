"""The recurrent layers that the program's nets can have, by name, and in what segments torch's are checkpointed."""

from __future__ import annotations

import math
from typing import Literal

Model = Literal["revgru", "revlstm", "gru", "lstm"]
"""Reversible layers, and torch's own, which store every state."""

REVERSIBLE: tuple[Model, ...] = ("revgru", "revlstm")
"""Those that rewind; their losses are streamed."""


def segment_of(steps: int) -> int:
    """The square root of a number of steps, rounded up: the length of a checkpointed segment."""
    return math.isqrt(max(0, steps - 1)) + 1
