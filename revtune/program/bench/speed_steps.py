"""Who competes in a case of `revtune bench speed`, each as a function that takes one step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from revtune.program.bench.contestants import Contestant, ContestantNet, Shape
from revtune.program.bench.matmul_floor import MatmulFloor, products_of
from revtune.program.bench.measuring import StepFunction
from revtune.program.bench.speed_cases import PAIRS, SpeedCase
from revtune.program.layers import segment_of


def steps_of(case: SpeedCase, backend: str) -> dict[str, StepFunction]:
    """The competitors' steps by name; those that are compared stand side by side."""
    data = _data(case)
    steps: dict[str, StepFunction] = {}
    for ours, theirs in PAIRS:
        contestants = [Contestant(cell=theirs), Contestant(cell=ours, backend=backend)]
        contestants += [Contestant(cell=theirs, segments=True)] if case.checkpointed else []
        steps |= {contestant.name: _step(case, contestant, data) for contestant in contestants}
        for cell in (theirs, ours) if case.products else ():
            floor = MatmulFloor(cell, case.shape)
            steps[products_of(cell)] = floor.train if case.kind == "layer" else floor.infer
    return steps


def _data(case: SpeedCase) -> tuple[Tensor, Tensor]:
    """What all contestants read: tokens and targets, or a bare layer's input and the gradient of its output."""
    shape = case.shape
    if case.kind == "step":
        tokens = torch.randint(shape.vocabulary, (shape.steps + 1, shape.batch))
        return tokens[:-1], tokens[1:]
    x = torch.randn(shape.steps, shape.batch, shape.features, requires_grad=True)
    return x, torch.randn(shape.steps, shape.batch, shape.hidden)


def _step(case: SpeedCase, contestant: Contestant, data: tuple[Tensor, Tensor]) -> StepFunction:
    if case.kind == "step":
        return WholeStep(contestant, case.shape, *data).train
    layer = BareLayer(contestant, case.shape, *data)
    return layer.train if case.kind == "layer" else layer.infer


class WholeStep:
    """A whole training step.

    Args:
        contestant: which layer, and how its step is remembered.
        shape: its sizes.
        tokens: read at each step, (T, B).
        targets: (T, B).
    """

    def __init__(self, contestant: Contestant, shape: Shape, tokens: Tensor, targets: Tensor) -> None:
        self.net = ContestantNet(contestant, shape)
        self.tokens, self.targets = tokens, targets

    def train(self) -> None:
        """Forward and backward; the gradients are dropped, as a training step's are in the end."""
        self.net.step(self.tokens, self.targets)
        self.net.zero_grad(set_to_none=True)


class BareLayer:
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
