"""A bare layer as `revtune bench speed` runs it: forward, and backward of a given gradient of its outputs.

The input requires a gradient, as it does within a net.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from revtune.contestants import Contestant, Shape, segment_of


class Bare:
    """A recurrent layer by itself.

    Args:
        contestant: which, and how its outputs are remembered.
        shape: its sizes.
        x: inputs (T, B, I), requiring a gradient.
        dy: the gradient of its outputs, (T, B, H).
    """

    def __init__(self, contestant: Contestant, shape: Shape, x: Tensor, dy: Tensor) -> None:
        self.rnn = contestant.layer(shape.features, shape)
        self.segments, self.x, self.dy = contestant.segments, x, dy

    def train(self) -> None:
        """Forward and backward; the gradients are dropped, as a training step's are in the end."""
        self.backward()
        self.x.grad = None
        self.rnn.zero_grad(set_to_none=True)

    def backward(self) -> None:
        """Gradients of the input and of the weights."""
        y = self._checkpointed() if self.segments else self.rnn(self.x)[0]
        y.backward(self.dy)

    def infer(self) -> None:
        """Forward alone."""
        with torch.no_grad():
            self.rnn(self.x)

    def _checkpointed(self) -> Tensor:
        outputs, state = [], None
        for part in self.x.split(segment_of(len(self.x))):
            y, state = checkpoint(self.rnn, part, state, use_reentrant=False)
            outputs.append(y)
        return torch.cat(outputs)
