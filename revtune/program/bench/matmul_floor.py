"""The floor of `revtune bench speed`: the matrix products that a layer needs, and nothing else, by `aten::mm`.

An ordinary training step of a layer, one that stores its gates and rewinds nothing, projects the inputs of all steps
at once, multiplies the state step by step, and so do the gradients on the way back; the gradients of the weights are
one product each. The products are written to tensors that are there already, and their factors are random numbers.

Shapes: T time, B batch, I input, H hidden, N units of a part of the state, G = k N gates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from revtune.program.bench.contestants import Shape

Product = tuple[Tensor, Tensor, Tensor]
"""Left factor, right factor, and the tensor that their product is written to."""


class CellProducts(NamedTuple):
    """The parts of a cell's state, and k of each product that reads one of them, a step."""

    parts: int
    blocks: tuple[int, ...]


CELL_PRODUCTS = {
    "nn.GRU": CellProducts(1, (3,)),
    "nn.LSTM": CellProducts(1, (4,)),
    "RevGRU": CellProducts(2, (2, 1)),
    "RevLSTM": CellProducts(2, (5,)),
}
"""RevGRU multiplies h for z and r, then r * h for g; nn.GRU's reset gate acts after the product."""


def products_of(cell: str) -> str:
    """What tables call the products of a cell."""
    return f"products of {cell}"


class MatmulFloor:
    """The products of a layer, ready to be made.

    Args:
        cell: a key of `CELL_PRODUCTS`.
        shape: the layer's sizes.
    """

    def __init__(self, cell: str, shape: Shape) -> None:
        self.forward, self.backward = list[Product](), list[Product]()
        for layer in range(shape.layers):
            inputs = shape.hidden if layer else shape.features
            forward, backward = _layer(CELL_PRODUCTS[cell], shape, inputs)
            self.forward += forward
            self.backward = backward + self.backward  # the last layer's come first on the way back

    def train(self) -> None:
        """All products of a training step."""
        multiply(self.forward)
        multiply(self.backward)

    def infer(self) -> None:
        """Those of the forward pass."""
        multiply(self.forward)


def multiply(products: list[Product]) -> None:
    """Make products, one after another."""
    mm = torch.mm
    with torch.no_grad():
        for left, right, out in products:
            mm(left, right, out=out)


def _layer(cell: CellProducts, shape: Shape, inputs: int) -> tuple[list[Product], list[Product]]:
    """The products of one layer, forward and backward, each in order of time."""
    units, rows = shape.hidden // cell.parts, shape.steps * shape.batch
    x, dx = torch.randn(rows, inputs), torch.empty(rows, inputs)
    weight = torch.randn(cell.parts * sum(cell.blocks) * units, inputs)
    gates = torch.empty(rows, len(weight))
    recurrent = [_recurrent(k * units, units, shape) for k in cell.blocks * cell.parts]
    forward = [(x, weight.t(), gates), *(part.forward[t] for t in range(shape.steps) for part in recurrent)]
    backward = [part.backward[t] for t in reversed(range(shape.steps)) for part in reversed(recurrent)]
    backward += [part.gradient for part in recurrent]
    return forward, [*backward, (gates.t(), x, torch.empty_like(weight)), (gates, weight, dx)]


class _RecurrentProducts(NamedTuple):
    """A product of each step, the one on its way back, and the gradient of its weight."""

    forward: list[Product]
    backward: list[Product]
    gradient: Product


def _recurrent(gates: int, units: int, shape: Shape) -> _RecurrentProducts:
    """The products with a weight (G, N)."""
    weight, out, back = (torch.randn(size) for size in ((gates, units), (shape.batch, gates), (shape.batch, units)))
    h, d = (torch.randn(shape.steps, shape.batch, width) for width in (units, gates))
    return _RecurrentProducts(
        [(h_t, weight.t(), out) for h_t in h],
        [(d_t, weight, back) for d_t in d],
        (d.flatten(0, 1).t(), h.flatten(0, 1), torch.empty_like(weight)),
    )
