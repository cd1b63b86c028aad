"""A chunk's tensors as the kernels of both cells are given them, step by step and half by half.

Shapes: K steps, B rows, N units of a half, M positions (step, row), S states of the cell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from revtune.reversible.cells import fixed
from revtune.reversible.kernel.triton import resets
from revtune.reversible.kernel.triton.launching import DEPTH, ELEMENTS, FEW_INPUTS, HEADS, OPTIONS, ROWS, UNITS
from revtune.reversible.kernel.triton.responses import ADDED, NO_RESPONSE, NOTED, Response
from revtune.reversible.kernel.triton.stacks import Stacks, tiles
from revtune.reversible.kernel.triton.tangents import Tangent
from revtune.reversible.kernel.triton.whole import Whole

HALVES = 2
"""Halves of a state."""

CUT = {"ROWS": ROWS, "UNITS": UNITS, "DEPTH": DEPTH}
"""How products are cut."""

SHALLOW_CUT = {**CUT, "DEPTH": FEW_INPUTS}
"""How those of gates with a response are, and of tangents."""


class Limit(NamedTuple):
    """What bounds forgetting: z becomes slope * z + floor; and whether a RevLSTM's h takes (1 - p) of its update."""

    slope: float
    forgetting: bool
    share: float = 1.0

    @property
    def floor(self) -> float:
        """The least that a gate becomes."""
        return 1.0 - self.slope


class Course(NamedTuple):
    """When the rows of a chunk run, and where they begin anew.

    Attributes:
        lengths: the step at which each ends, from the chunk's first one on, (B,), or None where all run at all steps.
        starts: the first step that each runs, (B,), or None likewise.
        resets: whether a row begins anew before a step, (K, B), uint8, or None for never.
        fresh: the states from which rows do so, in counts, (S, 2, B, N), int64.
        anew: the same as floats.
    """

    lengths: Tensor | None = None
    starts: Tensor | None = None
    resets: Tensor | None = None
    fresh: Tensor | None = None
    anew: Tensor | None = None

    @classmethod
    def of(
        cls, lengths: Tensor | None, starts: Tensor | None = None, resets: Tensor | None = None,
        anew: Tensor | None = None,
    ) -> Course:  # fmt: skip
        """From what operators are given: rows that may lack either end, states in counts as float64."""
        if lengths is None and starts is not None:
            lengths = torch.full_like(starts, torch.iinfo(torch.int64).max)
        if starts is None and lengths is not None:
            starts = torch.zeros_like(lengths)
        if anew is None:
            return cls(lengths, starts)
        return cls(lengths, starts, resets, anew.long(), fixed.from_counts(anew, torch.float32))

    def most_resets(self) -> int:
        """How often the row begins anew that does so most often; asks the device, unless no row does so at all."""
        return 0 if self.resets is None else int(self.resets.sum(0).max())


class Slices(NamedTuple):
    """The first units of h1 that stand on floats, kept at every step, in place of a buffer.

    Attributes:
        units: how many.
        before: what they were before each step, (K, B, units), for the way back.
    """

    units: int = 0
    before: Tensor | None = None


NO_SLICES = Slices()


class Chunk(ABC):
    """A chunk of one layer.

    Args:
        gates: (K, B, G).
        states: h after each step (K, B, 2N) and before the first (B, 2N), and c likewise or None.
        masks: locked masks (B, N) on h1 and h2 as gates read them.
        course: when rows run, and where they begin anew.
        limit: what bounds forgetting.
        slices: units that are kept.
        response: that of the recurrent products.
    """

    blocks: int
    """Blocks of gates of a half."""

    def __init__(
        self, gates: Tensor, states: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
        masks: tuple[Tensor | None, Tensor | None], course: Course, limit: Limit, slices: Slices = NO_SLICES,
        response: Response = NO_RESPONSE,
    ) -> None:  # fmt: skip
        self.gates, self.masks, self.course, self.limit = gates, masks, course, limit
        self.slices, self.response = slices, response
        self.y, self.y_start, self.c, self.c_start = states
        self.steps, self.rows, self.units = self.y.shape[0], self.y.shape[1], self.y.shape[2] // HALVES

    @abstractmethod
    def evaluate(self, first: int, last: int, half: int, source: Tensor, packed: Tensor) -> None:
        """What `turn` needs of a half at some steps, of which `source` is h' as gates read it, (M, N)."""

    @abstractmethod
    def turn(self, step: int, half: int, packed: Tensor, whole: Whole, stacks: Stacks, keep: int, *,
             back: bool) -> None:  # fmt: skip
        """A half's states one step on or back, from what `evaluate` gave."""

    @abstractmethod
    def complete(self, half: int, packed: Tensor) -> None:
        """What `evaluate` leaves of a half's gates at all steps."""

    @abstractmethod
    def differentiate(self, step: int, half: int, direction: Tensor, weight: Tensor) -> None:
        """Carry the direction (S, 2, B, N) through a half's step; gates become their gradients."""

    @abstractmethod
    def push_forward(self, step: int, half: int, tangent: Tangent, packed: Tensor) -> None:
        """Carry a tangent through a half's step, whose gates are known."""

    @property
    def cut(self) -> dict[str, int]:
        """How the products of gates are cut."""
        return CUT if self.response.weight is None else SHALLOW_CUT

    def half(self, tensor: Tensor, half: int) -> Tensor:
        """A half's columns of states (..., 2N)."""
        return tensor[..., half * self.units : (half + 1) * self.units]

    def half_gates(self, first: int, last: int, half: int) -> Tensor:
        """A half's gates at some steps, (M, blocks N)."""
        return self.half_columns(self.gates[first:last].flatten(0, 1), half)

    def half_columns(self, tensor: Tensor, half: int) -> Tensor:
        """A half's columns of what lies as gates do, (..., 2 blocks N)."""
        columns = self.blocks * self.units
        return tensor[..., half * columns : (half + 1) * columns]

    def weight(self, packed: Tensor, half: int) -> Tensor:
        """A half's recurrent weight, (blocks N, N)."""
        return packed.view(HALVES, self.blocks * self.units, self.units)[half]

    def responding(self, first: int, last: int, half: int) -> tuple[Tensor, Tensor, Tensor, int]:
        """A half's V, s, where V's products at some steps go, and RESPONSE; any tensors stand for those not given."""
        weight, scale, answers = self.response
        if weight is None or scale is None:
            return self.gates, self.gates, self.gates, 0
        weight, scale = self.weight(weight, half), self.half_columns(scale, half)
        if answers is None:
            return weight, scale, self.gates, ADDED.value
        return weight, scale, self.half_columns(answers[first:last].flatten(0, 1), half), NOTED.value

    def moving(self, step: int, half: int, tangent: Tangent) -> list[Tensor]:
        """What else than h' moves a half's pre-activations at a step, or any other tensors in its place."""
        return [self.gates if one is None else self.half_columns(one, half) for one in tangent.at(step)]

    def before(self, step: int, half: int) -> Tensor:
        """A half's h after the step before, (B, N), whether or not rows begin anew in between."""
        return self.half(self.y[step - 1] if step else self.y_start, half)

    def read(self, step: int, half: int) -> Tensor:
        """What a half's gates read at a step, (B, N): half 1 the other after the step, half 0 before it."""
        return self.half(self.y[step], 0) if half else self.before(step, 1)

    def runs(self) -> tuple[Tensor, Tensor, bool]:
        """Lengths and starts, or any other tensors in their place, and whether rows are ragged."""
        lengths, starts = self.course.lengths, self.course.starts
        return (self.gates, self.gates, False) if lengths is None or starts is None else (lengths, starts, True)

    def parts(self, half: int) -> list[tuple[int, int, bool]]:
        """Units of a half's h from one to another, and whether they are sliced."""
        sliced = 0 if half else self.slices.units
        return [part for part in ((0, sliced, True), (sliced, self.units, False)) if part[0] < part[1]]

    def slices_before(self, step: int) -> Tensor:
        """The sliced units before a step, (B, units), or any other tensor in their place."""
        return self.gates if self.slices.before is None else self.slices.before[step]

    def masked(self, half: int) -> tuple[Tensor, bool]:
        """The mask on what a half reads, or any other tensor in its place, and whether there is one."""
        mask = self.masks[1 - half]
        return (self.gates, False) if mask is None else (mask, True)

    def anew(self, step: int, half: int, state: int = 0) -> tuple[Tensor, Tensor, bool]:
        """Where rows begin anew from a step on, from which half of a state, and whether any do; or other tensors."""
        at, states = self.course.resets, self.course.anew
        if at is None or states is None:
            return self.gates, self.gates, False
        return at[step], states[state, half], True

    def read_anew(self, step: int, half: int) -> tuple[Tensor, Tensor, bool]:
        """The same of what a half's gates read: half 1 reads the other after the step, when it has begun."""
        return (self.gates, self.gates, False) if half else self.anew(step, 1)

    def move(self, whole: Whole, stacks: Stacks, packed: Tensor, keep: int, back: bool) -> None:
        """Run the steps, or undo them in the opposite order."""
        steps, halves = range(self.steps), range(HALVES)
        for step in reversed(steps) if back else steps:
            if not back:
                self._lose(step, whole, stacks, keep)
            for half in reversed(halves) if back else halves:
                self.evaluate(step, step + 1, half, self.read(step, half), packed)
                self.turn(step, half, packed, whole, stacks, keep, back=back)
            if back:
                self._regain(step, whole, stacks)

    def recall(self, packed: Tensor) -> None:
        """Evaluate the gates of all steps, whose outputs are known."""
        self.evaluate(0, 1, 0, self.before(0, 1), packed)
        if self.steps > 1:
            self.evaluate(1, self.steps, 0, self.half(self.y[:-1].flatten(0, 1), 1), packed)
        self.evaluate(0, self.steps, 1, self.half(self.y.flatten(0, 1), 0), packed)
        for half in range(HALVES):
            self.complete(half, packed)

    def carry(
        self, direction: Tensor, weight: Tensor, dy: Tensor | None, anew_direction: Tensor | None
    ) -> None:  # fmt: skip
        """Carry the direction and dy (K, B, 2N) back through all steps, as far as rows go back.

        What comes to where a row begins anew is added to `anew_direction`, (S, 2, B, N), if it is given.
        """
        for step in reversed(range(self.steps)):
            if dy is not None:
                direction[0] += dy[step].view(self.rows, HALVES, self.units).movedim(1, 0)
            for half in reversed(range(HALVES)):
                self.differentiate(step, half, direction, weight)
            self._cut(step, direction, anew_direction)

    def follow(self, tangent: Tangent, packed: Tensor) -> None:
        """Carry a tangent on through all steps; where rows begin anew, they do so from a state that does not move."""
        for step in range(self.steps):
            self._cut(step, tangent.state, None)
            for half in range(HALVES):
                self.push_forward(step, half, tangent, packed)

    def _lose(self, step: int, whole: Whole, stacks: Stacks, keep: int) -> None:
        """Begin rows anew that do so before a step."""
        if self.course.resets is None:
            return
        resets.lose[self._head_programs(whole)](
            whole.counts, whole.heads, self.course.fresh, *stacks[:3], whole.flags, self.course.resets[step], self.rows,
            self.units, whole.heads.shape[2], stacks.capacity, STATES=len(whole.counts), KEEP=keep, TURNS=whole.turns,
            ROWS=ROWS, HEADS=HEADS, **OPTIONS,
        )  # fmt: skip

    def _regain(self, step: int, whole: Whole, stacks: Stacks) -> None:
        """Go back to what rows were that begin anew before a step."""
        if self.course.resets is None:
            return
        y = self.y[step - 1] if step else self.y_start
        c = y if self.c is None or self.c_start is None else self.c[step - 1] if step else self.c_start
        resets.regain[self._head_programs(whole)](
            whole.counts, whole.heads, self.course.fresh, *stacks[:3], whole.flags, self.course.resets[step], y, c,
            self.rows, self.units, whole.heads.shape[2], STATES=len(whole.counts), TURNS=whole.turns, ROWS=ROWS,
            HEADS=HEADS, **OPTIONS,
        )  # fmt: skip

    def _cut(self, step: int, direction: Tensor, anew_direction: Tensor | None) -> None:
        """Let no gradient cross where rows begin anew before a step."""
        if self.course.resets is None:
            return
        into = direction if anew_direction is None else anew_direction
        resets.cut[self.rows, triton.cdiv(self.units, ELEMENTS)](
            direction, into, self.course.resets[step], self.rows, self.units, PARTS=HALVES * len(direction),
            ADDED=anew_direction is not None, SIZE=ELEMENTS, **OPTIONS,
        )  # fmt: skip

    def _head_programs(self, whole: Whole) -> tuple[int, int]:
        """Programs over the rows and heads of a chunk."""
        return triton.cdiv(self.rows, ROWS), tiles(whole.heads.shape[2])
