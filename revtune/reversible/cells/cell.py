"""Cells as lists of couplings, the one primitive that rewinds. gru.py and lstm.py build the four cells from it.

A *coupling* changes one part `a` of the state and reads only what it leaves alone::

    a  <-  z * a + u        z in (0, 1], u: functions of x_t and of the other parts
    a  <-  (a - u) / z      its inverse, exact in fixed point (fixed.py, information_buffer.py)

A *stage* is a run of couplings that share their gates; a *cell* is a tuple of stages. Undoing the couplings in the
opposite order undoes a step. Nothing here knows about time, buffers or gradients: `scan` brings those to any cell.

Writing one's own takes two functions, `gates(step)` and `update(step, *gates)`; docs/own-cell.md builds a reversible
minGRU.

Shapes: B batch, N units of a part, G = blocks * N gates of a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from revtune.reversible.arguments import check_bits, is_size
from revtune.reversible.cells import fixed

State = tuple[Tensor, ...]
"""A cell's state tensors, (B, H) each: h, or h and c."""

Rows = tuple[int, int] | None
"""Blocks of N rows of a weight, from the first number up to the second; None for all rows."""

Response = tuple[Tensor, Tensor]
"""The pair (V, s) of a product: `W h + s * (V h)` with V shaped like W and s of shape (B, rows of W)."""


class Step:
    """What a cell may read at one time step. `scan` makes it and hands it to the cell's functions.

    Args:
        parts: parts of the state by name, floats (B, N).
        weights: by name.
        responses: pairs (V, s) by the name of their weight.

    Attributes:
        x: the projected input of this stage, shape (B, G), or (B, blocks * N) of the raw input for a scan without
            weight `ih`.
        forbidden: parts that must not be read now.
    """

    def __init__(
        self, x: Tensor, parts: Mapping[str, Tensor], weights: Mapping[str, Tensor], responses: Mapping[str, Response]
    ) -> None:
        self.x = x
        self.forbidden: tuple[str, ...] = ()
        self._parts, self._weights, self._responses = parts, weights, responses

    def part(self, name: str) -> Tensor:
        """A part of the state as floats, shape (B, N).

        Raises:
            ValueError: a stage's gates read a part that the stage changes, or a coupling its own part: rewinding would
                read another value.
        """
        if name in self.forbidden:
            raise ValueError(f"gates and updates must not read a part that they change, but they read {name!r}")
        return self._parts[name]

    def weight(self, name: str) -> Tensor:
        """A weight as it is, for use other than in a product.

        Raises:
            ValueError: the scan carries a response for it, which only products can apply.
        """
        if name in self._responses:
            raise ValueError(f"weight {name!r} has a response, so the cell must use it through step.product")
        return self._named(name)

    def product(self, name: str, value: Tensor, rows: Rows = None) -> Tensor:
        """`W v`, or `W v + s * (V v)` where the scan carries a response pair for this weight.

        Args:
            name: which weight.
            value: shape (B, columns of W).
            rows: the blocks of N rows of W to use, from the first number up to the second; all rows by default.

        Returns:
            Shape (B, rows used).

        Raises:
            ValueError: there is no such weight, or its shape does not fit.
        """
        weight = self._named(name)
        chosen = block_rows(weight, rows, self._width())
        if weight.dim() != 2 or value.shape[-1] != weight.shape[1] or chosen.stop > weight.shape[0]:
            wanted = (max(chosen.stop, weight.shape[0]), value.shape[-1])
            raise ValueError(f"weight {name!r} must be {wanted} for this cell, got {tuple(weight.shape)}")
        product = F.linear(value, weight[chosen])
        if name not in self._responses:
            return product
        extra, scale = self._responses[name]
        return product + scale[:, chosen] * F.linear(value, extra[chosen])

    def _named(self, name: str) -> Tensor:
        if name not in self._weights:
            raise ValueError(f"the cell reads weight {name!r}, but the weights given are {tuple(self._weights)}")
        return self._weights[name]

    def _width(self) -> int:
        return next(iter(self._parts.values())).shape[-1]


def block_rows(weight: Tensor, rows: Rows, width: int) -> slice:
    """Blocks of `width` rows of a weight as a slice of its rows."""
    return slice(0, weight.shape[0]) if rows is None else slice(rows[0] * width, rows[1] * width)


@dataclass(frozen=True)
class Coupling:
    """`part <- z * part + u` with `z, u = update(step, *gates)`.

    Attributes:
        part: which part it changes.
        update: gives z, which comes from `forget_gate` or is None for a multiplier of 1 that forgets and stores
            nothing, and u, both (B, N). It may read every part but its own.
    """

    part: str
    update: Callable[..., tuple[Tensor | None, Tensor]]


def check_update(name: str, part: str, z: object, u: object, shape: torch.Size) -> None:
    """Refuse what the update of a coupling must not give, which would be laid over the part's other dimensions.

    Args:
        name: of the cell, for messages.
        part: which part it changes.
        z, u: what it gave.
        shape: of the part, (B, N).

    Raises:
        ValueError: z or u is no tensor of this shape, nor z None.
    """
    if (z is None or (isinstance(z, Tensor) and z.shape == shape)) and isinstance(u, Tensor) and u.shape == shape:
        return
    got = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in (z, u)]
    raise ValueError(
        f"{name}: the update of part {part!r} must give tensors z, or None, and u of shape {tuple(shape)}, "
        f"got z {got[0]} and u {got[1]}"
    )


@dataclass(frozen=True)
class Stage:
    """A run of couplings that share their gates.

    Attributes:
        blocks: how many blocks of N columns of the projected input it reads, as `step.x`.
        gates: `gates(step)` gives the tuple that every coupling's `update` is handed.
        couplings: in the order in which they act.
    """

    blocks: int
    gates: Callable[[Step], tuple[Tensor, ...]]
    couplings: tuple[Coupling, ...]

    @property
    def changes(self) -> tuple[str, ...]:
        """The parts that this stage changes, in order."""
        return tuple(coupling.part for coupling in self.couplings)


class NativeSettings(NamedTuple):
    """What the native kernel has to know of a cell that it has.

    Attributes:
        max_forget_bits: the limit on forgetting.
        forgetting: whether multipliers are gates at all.
        bounded: whether a RevLSTM's h takes up (1 - p) of its update, or all of it.
    """

    max_forget_bits: float | None
    forgetting: bool
    bounded: bool = True


@dataclass(frozen=True)
class Cell:
    """A reversible cell.

    Attributes:
        name: what errors call it.
        states: the parts of each state tensor, of which the first is the output: (("h1", "h2"), ("c1", "c2")) for an
            LSTM.
        stages: in order of time.
        bounded: whether the equations alone keep every state below 2^20; if not, `scan` watches every step.
        native: what the native kernel has to know, for the cells that it has. `dataclasses.replace` leaves it out: a
            changed cell is another cell.
    """

    name: str
    states: tuple[tuple[str, ...], ...]
    stages: tuple[Stage, ...]
    bounded: bool = False
    native: NativeSettings | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not self.parts or len(set(self.parts)) < len(self.parts):
            raise ValueError(f"{self.name}: parts must be distinct and at least one, got {self.parts}")
        for stage in self.stages:
            if unknown := set(stage.changes) - set(self.parts):
                raise ValueError(
                    f"{self.name}: a coupling changes {min(unknown)!r}, which is none of the parts {self.parts}"
                )
            if len(set(stage.changes)) < len(stage.changes):
                raise ValueError(
                    f"{self.name}: a stage changes a part twice, {stage.changes}; give the second a stage of its own"
                )

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts, state by state."""
        return tuple(part for group in self.states for part in group)

    @property
    def blocks(self) -> int:
        """How many blocks of N columns the projected input has."""
        return sum(stage.blocks for stage in self.stages)


def in_kernel(cell: Cell, settings: NativeSettings) -> Cell:
    """The cell, as one that the native kernel has."""
    object.__setattr__(cell, "native", settings)  # the class is frozen, and `replace` is to leave the field out
    return cell


def forget_gate(z: Tensor, max_forget_bits: float | None, *, top: int = fixed.FORGET_ONE) -> Tensor:
    """A gate that forgets at most `max_forget_bits` bits a step, rounded to a multiple of 2^-10.

    `m z + (1 - m)` with `m = 1 - 2^-bits` (MacKay et al. 2018, section 5), then rounded; the gradient of the rounding
    is 1.

    Args:
        z: gate values in [0, 1], such as a sigmoid's.
        max_forget_bits: any positive number, or None for no limit but that of the rounding, 10 bits.
        top: the largest forget integer, 1..1024.

    Raises:
        ValueError: a limit that is no positive number, or a top outside 1..1024.

    Example:
        >>> forget_gate(torch.tensor([0.0, 1.0]), 3.0)
        tensor([0.1250, 1.0000])
    """
    check_bits(max_forget_bits)
    if not (is_size(top) and top <= fixed.FORGET_ONE):
        raise ValueError(f"top must be an integer in 1..{fixed.FORGET_ONE}, the largest forget integer, got {top!r}")
    return fixed.round_forget(limited(z, max_forget_bits), top)


def limited(z: Tensor, max_forget_bits: float | None) -> Tensor:
    """`m z + (1 - m)` with `m = 1 - 2^-bits`, which forgets at most that many bits."""
    if max_forget_bits is None:
        return z
    m = slope_of(max_forget_bits)
    return m * z + (1.0 - m)


def slope_of(max_forget_bits: float | None) -> float:
    """m = 1 - 2^-bits; 1 without limit."""
    return 1.0 if max_forget_bits is None else 1.0 - 2.0**-max_forget_bits
