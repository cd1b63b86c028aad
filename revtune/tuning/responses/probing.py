"""Whose loss each row of a layer's output moves, measured.

To each output a zero is added that wants its gradient, one for each row. The loss of example j is then weighted by a
power of two of its own. A row that moves this loss alone has, to the last bit, that multiple of the gradient that it
has where all weights are 1, as powers of two scale numbers without rounding. So a few backward passes of one forward
pass tell of every row whose loss it moves, or that it moves several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from revtune.tuning.responses.owners import NOBODY, SEVERAL
from revtune.tuning.responses.rows import Laid

LEVELS = 64
"""How many powers of two weigh losses, half of them below 1; of more examples, several weightings tell, by digits."""

CLOSE = 1e-5
"""How far a ratio may be from a power of two: on a GPU sums are not always taken in one order."""

SMALL = 1e-25
"""Gradients below it count as none: times the smallest weight they leave the numbers that float32 has in full."""

Weighted = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Probed:
    """A layer's output in a probed pass.

    Attributes:
        owner: the layer or regularizer.
        said: whose its rows are taken to be; it broadcasts over them.
        at: what was added to each row, with size 1 in the dimension of units.
        axis: the dimension that is taken for the examples'.
        unit_dim: the dimension of units.
    """

    owner: Any
    said: Tensor
    at: Tensor
    axis: int
    unit_dim: int

    def wrong(self, moved: Tensor) -> Tensor:
        """Which rows move one loss, that of another example than the one that they are taken for."""
        return (moved >= 0) & (moved != self.said)


class Probe:
    """Adds what is to be measured to the outputs of layers, in one forward pass.

    Attributes:
        outputs: those that it was given.
        noted: of a regularizer that has just read its strength, how rows lie, B and the dimension of units.
    """

    def __init__(self) -> None:
        self.outputs: list[Probed] = []
        self.noted: dict[Any, tuple[Laid, int, int]] = {}

    def added_to(self, owner: Any, y: Tensor, laid: Laid, size: int, unit_dim: int) -> Tensor:
        """An output with rows of B examples, unchanged in value."""
        numbers = torch.arange(size, device=y.device)[:, None]
        return self.added(owner, y, laid.spread(numbers, y.shape, unit_dim), unit_dim, laid.axis)

    def added_as_noted(self, owner: Any, y: Tensor) -> Tensor:
        """The output of a regularizer; as it is where no strength is each example's own."""
        noted = self.noted.pop(owner, None)
        return y if noted is None or y.dim() < 2 else self.added_to(owner, y, *noted)

    def added(self, owner: Any, y: Tensor, said: Tensor, unit_dim: int = -1, axis: int = 0) -> Tensor:
        """The same for rows of these examples."""
        unit_dim %= y.dim()
        at = y.new_zeros([1 if dim == unit_dim else n for dim, n in enumerate(y.shape)], requires_grad=True)
        self.outputs.append(Probed(owner, said.cpu(), at, axis, unit_dim))
        units = [1] * y.dim()
        units[unit_dim] = -1
        # not the same for all units, as normalisations would take it off again
        return y + at * torch.linspace(-1.0, 1.7, y.shape[unit_dim], dtype=y.dtype, device=y.device).view(units)


def losses_moved(outputs: Sequence[Probed], weighted: Weighted, size: int) -> list[Tensor]:
    """For each output, which example's loss each row moves; NOBODY for none, SEVERAL for more than one.

    It is measured again, with other weights, if some row moves another example's loss: a mixing may look so by chance.

    Args:
        outputs: of one pass.
        weighted: the sum of that pass's losses, of B examples, each times one of B weights.
        size: B.
    """
    found = _decoded(outputs, weighted, size, 0)
    if not any(output.wrong(moved).any() for output, moved in zip(outputs, found, strict=True)):
        return found
    again = _decoded(outputs, weighted, size, 1)
    return [torch.where(one == other, one, SEVERAL) for one, other in zip(found, again, strict=True)]


def _decoded(outputs: Sequence[Probed], weighted: Weighted, size: int, seed: int) -> list[Tensor]:
    """Each row's example, by the digits of its place in an order that the seed gives."""
    leaves = [output.at for output in outputs]
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    even = _gradients(weighted(torch.ones(size)), leaves)
    numbers = [torch.zeros(leaf.shape, dtype=torch.long) for leaf in leaves]
    unit = 1
    while unit < size:
        grads = _gradients(weighted(2.0 ** (order // unit % LEVELS - LEVELS // 2)), leaves)
        for number, one, other in zip(numbers, even, grads, strict=True):
            digit = _power(one, other)
            number.copy_(torch.where((digit < 0) | (number < 0), torch.minimum(digit, number), number + unit * digit))
        unit *= LEVELS
    place = order.argsort()
    return [
        torch.where(number >= size, SEVERAL, torch.where(number < 0, number, place[number.clamp(0, size - 1)]))
        for number in numbers
    ]


def _gradients(value: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    grads = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
    return [grad.double().cpu() for grad in grads]


def _power(one: Tensor, other: Tensor) -> Tensor:
    """Which weight one is multiplied by to be the other; NOBODY where one is nothing, SEVERAL where it is none."""
    power = (other / one).log2().round()
    exact = (power >= -LEVELS // 2) & (power < LEVELS // 2) & ((other - one * 2.0**power).abs() <= CLOSE * other.abs())
    found = torch.where(exact, power + LEVELS // 2, SEVERAL).long()
    return torch.where(one.abs() < SMALL, NOBODY, found)
