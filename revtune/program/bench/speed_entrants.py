"""Who competes in a case of `revtune bench speed`, each as a function that takes one step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from revtune.program.bench.contestants import Contestant, Net, Shape, segment_of
from revtune.program.bench.matmul_floor import Floor, alone
from revtune.program.bench.speed_cases import PAIRS, Case


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


Run = Callable[[], object]


def entrants(case: Case, backend: str) -> dict[str, Run]:
    """The competitors by name; those that are compared stand side by side."""
    build = whole(case.shape) if case.kind == "step" else bare(case.shape, train=case.kind == "layer")
    found: dict[str, Run] = {}
    for ours, theirs in PAIRS:
        competing: list[Contestant | str] = [Contestant(cell=theirs), Contestant(cell=ours, backend=backend)]
        competing += [Contestant(cell=theirs, segments=True)] if case.checkpointed else []
        competing += [theirs, ours] if case.products else []
        found |= {one.name if isinstance(one, Contestant) else alone(one): build(one) for one in competing}
    return found


def bare(shape: Shape, *, train: bool) -> Callable[[Contestant | str], Run]:
    """What makes a run of a bare layer, or of a cell's products; all read the same input."""
    x = torch.randn(shape.steps, shape.batch, shape.features, requires_grad=True)
    dy = torch.randn(shape.steps, shape.batch, shape.hidden)

    def build(one: Contestant | str) -> Run:
        ready = Bare(one, shape, x, dy) if isinstance(one, Contestant) else Floor(one, shape)
        return ready.train if train else ready.infer

    return build


def whole(shape: Shape) -> Callable[[Contestant | str], Run]:
    """What makes a run of a whole training step; all read the same tokens."""
    tokens = torch.randint(shape.vocabulary, (shape.steps + 1, shape.batch))

    def build(one: Contestant | str) -> Run:
        assert isinstance(one, Contestant)
        net = Net(one, shape)

        def step() -> None:
            net.step(tokens[:-1], tokens[1:])
            net.zero_grad(set_to_none=True)

        return step

    return build
