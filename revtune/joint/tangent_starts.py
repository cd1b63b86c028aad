"""Tangents of states that are kept from the way there to the way back.

Shapes: B batch, N units of a part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from revtune.reversible.cells.word_store import WordStore

Moved = list[dict[str, Tensor]]
"""The tangent of the state of each layer, (B, N) by part; parts left out have none."""


class TangentStarts:
    """A stack of tangents of all layers' states, which lie in a few large blocks like the words of a buffer.

    Args:
        device, dtype: theirs.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._store = WordStore(device, dtype)
        self._shapes: list[list[dict[str, torch.Size]]] = []

    def __bool__(self) -> bool:
        return bool(self._shapes)

    def push(self, moved: Moved) -> None:
        """Put these on top; they are copied."""
        self._shapes.append([{part: tangent.shape for part, tangent in layer.items()} for layer in moved])
        for tangent in (tangent for layer in moved for tangent in layer.values()):
            self._store.push(tangent.reshape(-1))

    def pop(self) -> Moved:
        """Take the top ones off. The next `push` may write over their numbers."""
        return [
            {part: self._store.pop().view(shape) for part, shape in reversed(layer.items())}
            for layer in reversed(self._shapes.pop())
        ][::-1]
