"""One step of a cell in plain torch, to be differentiated by ordinary autograd: nothing is rewound.

States are exact, as everywhere, and what forgetting loses is rounded away, as in inference. Rounding passes gradients
straight through: dh = dy * z, dz = dy * h, with the rounded z.

Shapes: B batch, I input, H hidden, N units of a part.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from revtune.reversible.cells import fixed
from revtune.reversible.cells.cell import Cell, Rows, State, Step
from revtune.reversible.cells.state_range import LARGEST_COUNT, check_finite, check_state, name_bad_count
from revtune.reversible.transforms import active


class _WatchedStep(Step):
    """A step that keeps its products, so that they can be looked at: those of an infinite weight are not finite."""

    seen: list[Tensor]

    def product(self, name: str, value: Tensor, rows: Rows = None) -> Tensor:
        product = super().product(name, value, rows)
        self.seen.append(product.detach())
        return product


def plain_step(cell: Cell, x: Tensor, state: State, weights: Mapping[str, Tensor], name: str) -> State:
    """The state after a step.

    Args:
        cell: which cell.
        x: inputs, (B, I).
        state: one tensor (B, H) for each of the cell's states, of x's dtype or float64, rounded to multiples of 2^-32.
        weights: `ih` and, if there is one, `bias` of the input projection, and what the cell's stages name.
        name: what errors call it.

    Raises:
        NonFiniteError, StateRangeError: a number is not finite, or a state reaches 2^20.
    """
    projected = F.linear(x, weights["ih"], weights.get("bias"))
    counts, floats = _read(cell, state, x.dtype)
    first, seen = dict(counts), [projected.detach()]
    columns = projected.split([stage.blocks * counts[cell.parts[0]].shape[-1] for stage in cell.stages], -1)
    for stage, part_of_x in zip(cell.stages, columns, strict=True):
        step = _WatchedStep(part_of_x, floats, weights, {})
        step.seen, step.forbidden = seen, stage.changes
        gates = stage.gates(step)
        for coupling in stage.couplings:
            step.forbidden = (coupling.part,)
            z, u = coupling.update(step, *gates)
            counts[coupling.part] = _coupled(counts[coupling.part], z, u)
            before = floats[coupling.part]
            moved = u + (before if z is None else z * before)
            floats[coupling.part] = _straight(fixed.from_counts(counts[coupling.part], x.dtype), moved)
    if not (torch.compiler.is_compiling() or active()):  # both of which know no numbers
        if not _in_order(seen, [*first.values(), *counts.values()]):
            _refuse(x, state, weights, counts, name)
    return tuple(
        _whole([counts[part] for part in group], [floats[part] for part in group], tensor.dtype)
        for group, tensor in zip(cell.states, state, strict=True)
    )


def _read(cell: Cell, state: State, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Counts of the parts of a state, and the parts as the cell reads them."""
    counts: dict[str, Tensor] = {}
    floats: dict[str, Tensor] = {}
    for group, tensor in zip(cell.states, state, strict=True):
        count = fixed.to_counts(tensor.detach())
        value = _straight(fixed.from_counts(count, dtype), tensor)
        counts |= zip(group, count.chunk(len(group), -1), strict=True)
        floats |= zip(group, value.chunk(len(group), -1), strict=True)
    return counts, floats


def _whole(counts: list[Tensor], floats: list[Tensor], dtype: torch.dtype) -> Tensor:
    """A state from its parts."""
    value = torch.cat(floats, -1)
    return value if value.dtype == dtype else _straight(fixed.from_counts(torch.cat(counts, -1), dtype), value)


def _coupled(count: Tensor, z: Tensor | None, u: Tensor) -> Tensor:
    """`z * count + u` in counts."""
    if z is not None:
        count = (count * fixed.forget_integer(z)).mul_(1 / fixed.FORGET_ONE).round_()
    return count + fixed.to_counts(u.detach())


def _straight(value: Tensor, smooth: Tensor) -> Tensor:
    """`value`, with the gradient of what it was rounded from."""
    if not (torch.is_grad_enabled() and smooth.requires_grad):
        return value
    return value + (smooth - smooth.detach()).to(value.dtype)  # plus an exact 0


def _in_order(products: list[Tensor], counts: list[Tensor]) -> bool:
    """Whether products are finite and counts in range; a NaN fails both comparisons."""
    largest = torch.cat(products, -1).abs().amax() if products[0].numel() else 0.0
    peak = torch.cat(counts, -1).abs().amax() if counts[0].numel() else 0.0
    return bool(largest < torch.inf) and bool(peak < LARGEST_COUNT)


def _refuse(x: Tensor, state: State, weights: Mapping[str, Tensor], counts: Mapping[str, Tensor], name: str) -> None:
    """Say what is not in order. Weights that are finite may have products that are not: these are no error.

    Raises:
        NonFiniteError, StateRangeError: names it.
    """
    check_finite(x.detach(), f"{name}: input")
    for tensor in state:
        check_state(tensor.detach(), f"{name}: the first state")
    for key, weight in weights.items():
        check_finite(weight.detach(), f"{name}: weight {key!r}")
    for part, count in counts.items():
        name_bad_count(count, part, 0, name)
