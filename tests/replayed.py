"""A recorder that stands for a CUDA graph, which no machine without a GPU captures.

It keeps the launches, over the rooms that they were captured over, and runs these again: of a tensor that had no room,
or a number that the key leaves out, it would know what was there when it was captured, as a graph does.
"""

from collections.abc import Callable

import pytest
import torch

from revtune.reversible.kernel.triton import graphs


class Replayed:
    """What stands for a CUDA graph."""

    captured, replays = 0, 0

    def __init__(self, launches: Callable[[], None], device: torch.device) -> None:
        self._launches = launches
        Replayed.captured += 1

    def replay(self) -> None:
        Replayed.replays += 1
        self._launches()


def replaying(monkeypatch: pytest.MonkeyPatch) -> type[Replayed]:
    """The stand-in, for chunks of any length from now on; there are no graphs yet."""
    monkeypatch.setitem(graphs.RECORDERS, "cpu", Replayed)
    monkeypatch.setattr(graphs, "FEWEST_STEPS", 1)
    monkeypatch.setattr(graphs, "graphs", graphs.Graphs())
    Replayed.captured = Replayed.replays = 0
    return Replayed
