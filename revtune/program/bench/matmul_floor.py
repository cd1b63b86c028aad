"""The floor of `revtune bench speed`: the matrix products that a layer needs, and nothing else, by `aten::mm`.

An ordinary training step of a layer, one that stores its gates and rewinds nothing, projects the inputs of all steps
at once, multiplies the state step by step, and so do the gradients on the way back; the gradients of the weights are
one product each. The products are made into tensors that are there already, from numbers of no meaning.

Shapes: T time, B batch, I input, H hidden, N units of a part of the state, G = k N gates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from revtune.program.bench.contestants import Shape

Triple = tuple[Tensor, Tensor, Tensor]


class Form(NamedTuple):
    """The parts of a cell's state, and k of each product that reads one of them, a step."""

    parts: int
    blocks: tuple[int, ...]


FORMS = {
    "nn.GRU": Form(1, (3,)),
    "nn.LSTM": Form(1, (4,)),
    "RevGRU": Form(2, (2, 1)),
    "RevLSTM": Form(2, (5,)),
}
"""RevGRU multiplies h for z and r, then r * h for g; nn.GRU's reset gate acts after the product."""


def alone(cell: str) -> str:
    """What tables call the products of a cell."""
    return f"products of {cell}"


class Floor:
    """The products of a layer, ready to be made.

    Args:
        cell: a key of `FORMS`.
        shape: the layer's sizes.
    """

    def __init__(self, cell: str, shape: Shape) -> None:
        form, self.forward, self.backward = FORMS[cell], list[Triple](), list[Triple]()
        for layer in range(shape.layers):
            forward, backward = _layer(form, shape, shape.hidden if layer else shape.features)
            self.forward += forward
            self.backward = backward + self.backward

    def train(self) -> None:
        """All products of a training step."""
        make(self.forward)
        make(self.backward)

    def infer(self) -> None:
        """Those of the forward pass."""
        make(self.forward)


def make(products: list[Triple]) -> None:
    """Multiply the first two of each triple into the third."""
    mm = torch.mm
    with torch.no_grad():
        for left, right, out in products:
            mm(left, right, out=out)


def _layer(form: Form, shape: Shape, inputs: int) -> tuple[list[Triple], list[Triple]]:
    """The products of one layer, forward and backward, each in order of time."""
    units, rows = shape.hidden // form.parts, shape.steps * shape.batch
    x, dx = torch.randn(rows, inputs), torch.empty(rows, inputs)
    weight = torch.randn(form.parts * sum(form.blocks) * units, inputs)
    gates = torch.empty(rows, len(weight))
    recurrent = [_recurrent(k * units, units, shape) for k in form.blocks * form.parts]
    forward = [(x, weight.t(), gates), *(one.forward[t] for t in range(shape.steps) for one in recurrent)]
    backward = [one.backward[t] for t in reversed(range(shape.steps)) for one in reversed(recurrent)]
    backward += [one.gradient for one in recurrent]
    return forward, [*backward, (gates.t(), x, torch.empty_like(weight)), (gates, weight, dx)]


class _Recurrent(NamedTuple):
    """A product of each step, the one on its way back, and the gradient of its weight."""

    forward: list[Triple]
    backward: list[Triple]
    gradient: Triple


def _recurrent(gates: int, units: int, shape: Shape) -> _Recurrent:
    """The products with a weight (G, N)."""
    weight, out, back = (torch.randn(size) for size in ((gates, units), (shape.batch, gates), (shape.batch, units)))
    h, d = (torch.randn(shape.steps, shape.batch, width) for width in (units, gates))
    return _Recurrent(
        [(h_t, weight.t(), out) for h_t in h],
        [(d_t, weight, back) for d_t in d],
        (d.flatten(0, 1).t(), h.flatten(0, 1), torch.empty_like(weight)),
    )
