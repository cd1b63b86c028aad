"""The reference tape: a cell's equations in plain torch, on any device, in float32 or float64.

Gradients are autograd's, stage by stage and step by step, over exactly recomputed values (stage_graph.py): whoever
writes a cell writes its forward equations only.

Shapes: K steps of a chunk, B batch, I input, N units of a part, H output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor

from revtune.errors import ReversalError, StateRangeError
from revtune.reversible import meter as metering
from revtune.reversible.cells import fixed
from revtune.reversible.cells.cell import Cell, Step, check_update
from revtune.reversible.cells.information_buffer import Buffer, default_share, ideal_bits
from revtune.reversible.cells.lane_buffer import buffer_for
from revtune.reversible.cells.state_range import LARGEST_COUNT, check_input, name_bad_count
from revtune.reversible.kernel.asked_once import Number, Truth, equal, numbers, require, same
from revtune.reversible.kernel.checksum import checksum, checksum_there
from revtune.reversible.kernel.forward_mode import differentiating_forward, make_dual, primal_and_tangent
from revtune.reversible.kernel.stage_graph import RecordingStep, StageGraph
from revtune.reversible.kernel.tape import Stored, Tape, TapePosition, step_range
from revtune.reversible.kernel.weights import ProductSteps, WeightRows, Weights
from revtune.reversible.meter import Usage

Multiply = Callable[[Tensor, Tensor], Tensor]
"""How counts are multiplied by forget integers: with the information buffer, or rounded."""

_FORGET_NOTHING = float(fixed.FORGET_ONE)
"""The forget integer, in float64 as the others, that leaves a count as it is."""


class ReferenceTape(Tape):
    """A tape in plain torch."""

    buffer: Buffer

    def _prepare(self, steps: int, share: int | None) -> None:
        self._shortest = steps if self.host_lengths is None else int(self.host_lengths.min())
        self._latest = 0 if self.host_starts is None else int(self.host_starts.max())
        self._share = default_share(steps, len(self.cell.parts)) if share is None else share
        self._anew_rows = {} if self.resets is None else _rows_by_step(self.resets)
        self._columns = _stage_columns(self.cell, self.units)
        self._counts: dict[str, Tensor] = {}
        self._floats: dict[str, Tensor] = {}  # the parts as floats
        self._reads: dict[str, Tensor] = {}  # the same, masked: what the cell reads
        self._graphs: list[list[StageGraph]] = []  # of the chunk that `record` or `rewind` left, by step and stage
        self._graphs_first = 0  # that chunk's first step

    @property
    def floats_per_step(self) -> int:
        """The input, four a gate (projection, value and their gradients), and four a coupling."""
        couplings = sum(len(stage.couplings) for stage in self.cell.stages)
        inputs = self.weights.tensors["ih"].shape[1] if "ih" in self.weights.tensors else 0
        return inputs + self.units * 4 * (self.cell.blocks + couplings)

    @property
    def counts(self) -> dict[str, Tensor]:
        return self._counts

    def copy(self) -> ReferenceTape:
        other = copy.copy(self)
        other.buffer, other.weights = self.buffer.copy(), self.weights.fresh()
        for name in ("_counts", "_floats", "_reads", "_graphs", "_checks", "_rough", "direction"):
            setattr(other, name, getattr(self, name).copy())
        other.anew_direction = {}
        return other

    def pause(self) -> None:
        self._graphs = []

    def restart(self, position: TapePosition) -> None:
        parts = self.cell.parts
        device = position.counts[parts[0]].device
        self.buffer = buffer_for(device)(self.rows, self.units, parts=len(parts), share=self._share, device=device)
        if position.heads is not None:
            self.buffer.heads.copy_(position.heads)
        self._checks: list[Number] = []
        self._ideal, self._spilled = 0.0, 0
        self._peak = torch.zeros((), dtype=torch.float64, device=device)
        self._rough: dict[str, Tensor] = {}  # whether a multiplier of a part was no multiple of 1/1024
        for part in parts:
            self._set(part, position.counts[part])

    def position(self) -> TapePosition:
        return TapePosition(dict(self.counts), self.buffer.heads.clone())

    def stored(self) -> Stored:
        return Stored(self.buffer.sealed(), [number % 2**64 for number in numbers(self._checks)])

    def take_up(self, stored: Stored) -> None:
        self.buffer.take_up(stored.words)
        self._checks = list(stored.checks)

    def forward(self, x: Tensor, first: int) -> Tensor:
        self._checks.append(self._checksum())
        y = self._advance(x, first, self._metered_multiply if metering.active() else self.buffer.multiply)
        self.buffer.seal()
        self._spilled += self._unit_steps(x, first)
        return y

    def preview(self, x: Tensor, first: int) -> Tensor:
        y = self._advance(x, first, self.buffer.multiply)
        self.buffer.discard()
        return y

    def infer(self, x: Tensor, first: int) -> Tensor:
        return self._advance(x, first, _multiply_only)

    def record(self, x: Tensor, first: int) -> Tensor:
        start, projected, y = self.position(), self._project(x, first), self._outputs(x)
        self._graphs, self._graphs_first = [], first
        for k, row in enumerate(projected):
            self._begin_anew(first + k)
            self._graphs.append([self._record(row, i, first + k, first=k == 0) for i in range(len(self.cell.stages))])
            self._watch()
            self._write(y[k])
        self._inspect(x, first, start)
        self._keep_slices(y, first)
        self.final = self.position()
        self._return_to(start)
        return y

    def rewind(self, x: Tensor, first: int) -> Tensor:
        self._check_heads(x, first)
        projected = self.weights.project(x) if self.waits else self._project(x, first)
        y = self._outputs(x)
        self._graphs, self._graphs_first = [], first
        back: list[Truth] = []
        try:
            with self.buffer.rewinding():
                for k in reversed(range(x.shape[0])):
                    self._write(y[k])  # the state after step k, before it is undone
                    stages = reversed(range(len(self.cell.stages)))
                    self._graphs.append([self._undo(projected[k], i, first + k) for i in stages][::-1])
                    back += self._take_lost(first + k)
        except ReversalError as error:
            raise ReversalError(self._explain(x, first, str(error))) from None
        self._graphs.reverse()
        enough, all_taken = self.buffer.came_even()
        require(enough, lambda: self._explain(x, first, "the information buffer ran empty"))
        for row_is_back in back:
            require(row_is_back, lambda: self._explain(x, first, "a row has not come back to where it began anew"))
        unlike = "the state differs from the one recorded before these steps"
        require(all_taken, lambda: self._explain(x, first, unlike))
        require(
            bool(self._checks) and same(self._checksum(), self._checks.pop()), lambda: self._explain(x, first, unlike)
        )
        return y

    def gradient(self, x: Tensor, dy: Tensor | None, *, keep: bool = False, wanted: bool = True) -> Tensor | None:
        dx = x.new_zeros(*x.shape[:2], self.cell.blocks * self.units)
        products: dict[WeightRows, ProductSteps] = {}
        for part in self.cell.parts:
            self.direction.setdefault(part, torch.zeros_like(self._floats[part]))
        for k in reversed(range(x.shape[0])):
            if dy is not None:
                self.add_gradient(dy[k])
            for graph, columns in zip(reversed(self._graphs[k]), reversed(self._columns), strict=True):
                grads = graph.gradient(self.direction, self.masks, keep=keep)
                if grads.x is not None:
                    dx[k, :, columns] = grads.x
                for name, grad in grads.weights.items():
                    self.weights.add(name, grad)
                for product in grads.products:
                    steps = products.setdefault(WeightRows(product.name, product.rows), ProductSteps([], []))
                    steps.values.append(product.value)
                    steps.grads.append(product.grad)
            self._cut(self._graphs_first + k)
            if not keep:
                self._graphs[k] = []  # the step's graph is freed as soon as it has been used
        self.weights.add_products(products)
        self.weights.add_projection(x, dx)
        return self.weights.project_back(dx) if wanted else None

    def tangent(
        self, x: Tensor, first: int, dx: Tensor | None, shift: Tensor | None, start: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        standing, projected = self.position(), self.weights.project(x)
        da, dy = self.weights.projection_tangent(x, dx, shift), self._outputs(x)
        moved = {part: start.get(part, torch.zeros_like(self._floats[part])) for part in self.cell.parts}
        with differentiating_forward():
            for k, row in enumerate(projected):
                self._begin_anew(first + k)
                if (rows := self._anew_rows.get(first + k)) is not None:
                    moved.update({part: tangent.index_fill(0, rows, 0.0) for part, tangent in moved.items()})
                self._move(row, da[k], moved, self._live(first + k))
                torch.cat([moved[part] for part in self.cell.states[0]], -1, out=dy[k])
        self._return_to(standing)
        return dy, moved

    def ahead(
        self, x: Tensor, first: int, dx: Tensor | None, shift: Tensor | None, start: Mapping[str, Tensor], *, keep: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        dy, moved = self.tangent(x, first, dx, shift, start)  # which runs from where the tape stands and returns there
        y = self.forward(x, first) if keep else self.preview(x, first)
        return y, dy, moved

    @property
    def waits(self) -> bool:
        return not self.buffer.free_to_ask

    def _return_to(self, start: TapePosition) -> None:
        """Stand where a chunk began that was run without keeping its words."""
        self.buffer.discard()
        assert start.heads is not None
        self.buffer.heads.copy_(start.heads)
        for part, count in start.counts.items():
            self._set(part, count)

    def _move(self, row: Tensor, da: Tensor, moved: dict[str, Tensor], live: Tensor | None) -> None:
        """Run a step, and bring the tangents of all parts one step on."""
        pairs = {name: (extra, make_dual(torch.zeros_like(scale), scale))
                 for name, (extra, scale) in self.weights.responses.items()}  # fmt: skip
        for stage, columns in zip(self.cell.stages, self._columns, strict=True):
            reads = {part: make_dual(read, moved[part] * self.masks.get(part, 1.0))
                     for part, read in self._reads.items()}  # fmt: skip
            step = Step(make_dual(row[:, columns], da[:, columns]), reads, self.weights.tensors, pairs)
            gates = stage.gates(step)
            for coupling in stage.couplings:
                part, before = coupling.part, moved[coupling.part]
                multiplier, update = coupling.update(step, *gates)
                u, after = primal_and_tangent(update)
                z = None
                if multiplier is None:
                    after = before + after
                else:
                    z, dz = primal_and_tangent(multiplier)
                    after = z * before + dz * self._floats[part] + after
                moved[part] = after if live is None else torch.where(live, after, before)
                self._couple(part, z, u, live, self.buffer.multiply)
                reads[part] = make_dual(self._reads[part], moved[part] * self.masks.get(part, 1.0))

    def usage(self) -> Usage:
        stored = self.buffer.stored_bits if self._spilled else 0
        return Usage(self.name, stored, self._ideal, self._spilled)

    def _record(self, row: Tensor, stage: int, step: int, *, first: bool) -> StageGraph:
        """Run a stage at a step of the last chunk, of which the first is checked closely."""
        graph, live = self._graph(row, stage, step)
        for index, part in enumerate(self.cell.stages[stage].changes):
            z, u = graph.update(index, self._check_update if first else None)
            graph.note_before(index, self._floats[part])
            self._couple(part, z, u, live, self.buffer.multiply)
        if first:
            graph.check_closed()
        return graph

    def _undo(self, row: Tensor, stage: int, step: int) -> StageGraph:
        """Undo a stage at a step, its couplings in the opposite order."""
        graph, live = self._graph(row, stage, step)
        for index, part in reversed(list(enumerate(self.cell.stages[stage].changes))):
            z, u = graph.update(index)
            h = self.counts[part] - _masked(fixed.to_counts(u), live, 0.0)
            if z is not None:
                h = self._divide(part, h, _masked(fixed.forget_integer(z), live, _FORGET_NOTHING))
            if kept := self._sliced(part):
                h[:, :kept] = fixed.to_counts(self.slices[step])  # the sliced units before this step
                if (rows := self._anew_rows.get(step)) is not None:
                    h[rows, :kept] = self.anew[part][rows, :kept]
            self._set(part, h)
            graph.note_before(index, self._floats[part])
        return graph

    def _graph(self, row: Tensor, stage: int, step: int) -> tuple[StageGraph, Tensor | None]:
        live = self._live(step)
        reading = RecordingStep(row[:, self._columns[stage]], self._reads, self.weights.tensors, self.weights.added())
        return StageGraph(self.cell.stages[stage], reading, live), live

    def step(self, x: Tensor, first: int) -> None:
        """Run a chunk without a buffer, and without a check of the state that it leads to."""
        self._run(x, first, _multiply_only)

    def _advance(self, x: Tensor, first: int, multiply: Multiply) -> Tensor:
        start = TapePosition(dict(self.counts))
        y = self._run(x, first, multiply)
        self._inspect(x, first, start)
        return y

    def _run(self, x: Tensor, first: int, multiply: Multiply) -> Tensor:
        projected, y = self._project(x, first), self._outputs(x)
        for k, row in enumerate(projected):
            self._begin_anew(first + k, kept=multiply != _multiply_only)
            live = self._live(first + k)
            for stage, columns in zip(self.cell.stages, self._columns, strict=True):
                step = Step(row[:, columns], self._reads, self.weights.tensors, self.weights.added())
                step.forbidden = stage.changes
                gates = stage.gates(step)
                for coupling in stage.couplings:
                    step.forbidden = (coupling.part,)
                    z, u = coupling.update(step, *gates)
                    if k == 0:
                        self._check_update(coupling.part, z, u)
                    self._couple(coupling.part, z, u, live, multiply)
            self._watch()
            self._write(y[k])
        return self._keep_slices(y, first)

    def _begin_anew(self, step: int, *, kept: bool = True) -> None:
        """Begin the rows anew that do so before this step; what they lose goes into the buffer if it is to be kept."""
        rows = self._anew_rows.get(step)
        if rows is None:
            return
        lost = [count[rows] for count in self._counts.values()]
        for count in lost:  # which nobody looks at later
            torch.maximum(self._peak, count.abs().amax(), out=self._peak)
        if kept:
            self.buffer.put_away(rows, lost)
        self._put(rows, [self.anew[part][rows] for part in self._counts])

    def _take_lost(self, step: int) -> list[Truth]:
        """Put back what rows lost when they began anew before this step; whether each part had come back to there."""
        rows = self._anew_rows.get(step)
        if rows is None:
            return []
        back = [equal(count[rows], self.anew[part][rows], waits=self.waits) for part, count in self._counts.items()]
        self._put(rows, self.buffer.take_back(rows, len(self._counts)))
        return back

    def _put(self, rows: Tensor, counts: list[Tensor]) -> None:
        """Set some rows of each part."""
        for part, some in zip(list(self._counts), counts, strict=True):
            self._set(part, self._counts[part].index_copy(0, rows, some))

    def _cut(self, step: int) -> None:
        """Let no gradient cross where rows begin anew: what has come there is that of the state from which they do."""
        rows = self._anew_rows.get(step)
        if rows is None:
            return
        for part, grad in self.direction.items():
            if self.learns_anew:
                here = self.anew_direction.setdefault(part, torch.zeros_like(grad))
                here.index_add_(0, rows, grad[rows])
            self.direction[part] = grad.index_fill(0, rows, 0.0)

    def _couple(self, part: str, z: Tensor | None, u: Tensor, live: Tensor | None, multiply: Multiply) -> None:
        h = self.counts[part]
        kept = self._sliced(part)
        if z is not None:
            zi = _masked(fixed.forget_integer(z), live, _FORGET_NOTHING)
            rest = multiply(h[:, kept:], zi[:, kept:])
            h = torch.cat([_multiply_only(h[:, :kept], zi[:, :kept]), rest], -1) if kept else rest
        h = h + _masked(fixed.to_counts(u), live, 0.0)
        if kept:
            # Rounded to floats, which are what `slices` keeps.
            h[:, :kept] = fixed.to_counts(fixed.from_counts(h[:, :kept], self.dtype))
        self._set(part, h)

    def _divide(self, part: str, h: Tensor, zi: Tensor) -> Tensor:
        """h before it was multiplied by forget integers; sliced units are left as they are."""
        kept = self._sliced(part)
        rest = self.buffer.divide(h[:, kept:], zi[:, kept:])
        return torch.cat([h[:, :kept], rest], -1) if kept else rest

    def _sliced(self, part: str) -> int:
        """How many first units of a part are sliced."""
        return self.sliced if part == self.cell.parts[0] else 0

    def _metered_multiply(self, h: Tensor, zi: Tensor) -> Tensor:
        self._ideal += ideal_bits(zi)
        return self.buffer.multiply(h, zi)

    def _set(self, part: str, count: Tensor) -> None:
        self._counts[part] = count
        self._floats[part] = fixed.from_counts(count, self.dtype)
        self._reads[part] = self._floats[part] * self.masks[part] if part in self.masks else self._floats[part]

    def _live(self, step: int) -> Tensor | None:
        """Which rows still run at this step, (B, 1); None when all do."""
        live = None if self.lengths is None or step < self._shortest else self.lengths > step
        if self.starts is not None and step < self._latest:
            live = self.starts <= step if live is None else live & (self.starts <= step)
        return None if live is None else live.unsqueeze(-1)

    def _project(self, x: Tensor, first: int) -> Tensor:
        check_input(x, first, self.name)
        return self.weights.project(x)

    def _outputs(self, x: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:2], self.units * len(self.cell.states[0]), dtype=self.dtype)

    def _write(self, y: Tensor) -> None:
        torch.cat([self._floats[part] for part in self.cell.states[0]], -1, out=y)

    def _checksum(self) -> Number:
        compute = checksum_there if self.waits else checksum
        return compute(self.buffer.words, (*self.counts.values(), self.buffer.heads))

    def _check_update(self, part: str, z: Tensor | None, u: Tensor) -> None:
        """Check what a coupling gave, and note whether its multiplier is rounded; `_inspect` asks, once a chunk."""
        check_update(self.name, part, z, u, self._counts[part].shape)
        if z is not None:
            self._rough[part] = fixed.is_rough(z)

    def _watch(self) -> None:
        """Note the largest count of a step. A cell that is bounded is looked at once a chunk, in `_inspect`."""
        if not self.cell.bounded:
            for count in self.counts.values():
                torch.maximum(self._peak, count.abs().amax(), out=self._peak)

    def _inspect(self, x: Tensor, first: int, start: TapePosition) -> None:
        """Find multipliers that are not rounded, states out of range and non-finite numbers, once a chunk."""
        peak = self._peak
        for count in self.counts.values():
            peak = torch.maximum(peak, count.abs().amax())
        fine, *rough = torch.stack([peak < LARGEST_COUNT, *self._rough.values()]).tolist()  # NaN is not below either
        for part, wrong in zip(self._rough, rough, strict=True):
            if wrong:
                raise ValueError(
                    f"{self.name}: the multiplier of part {part!r} must be a multiple of 1/1024 in [1/1024, 1]; "
                    "make it with forget_gate"
                )
        if not fine:
            name_bad_state(
                self.cell, self.weights, x, first, start, masks=self.masks, lengths=self.lengths, name=self.name,
                resets=self.resets, anew=self.anew, starts=self.starts,
            )  # fmt: skip


def name_bad_state(
    cell: Cell,
    weights: Weights,
    x: Tensor,
    first: int,
    start: TapePosition,
    *,
    masks: Mapping[str, Tensor],
    lengths: Tensor | None,
    name: str,
    resets: Tensor | None = None,
    anew: Mapping[str, Tensor] | None = None,
    starts: Tensor | None = None,
) -> NoReturn:
    """Run a chunk (K, B, I) again from its start, step by step, to say where the state went wrong.

    Raises:
        NonFiniteError, StateRangeError: name layer, part, unit, row and step.
    """
    # Said to be bounded, so that the tape does not watch the state: here each step is looked at.
    scout = ReferenceTape(
        replace(cell, bounded=True), weights.fresh(), TapePosition(start.counts), steps=first + x.shape[0],
        dtype=x.dtype, masks=masks, lengths=lengths, name=name, resets=resets, anew=anew, starts=starts,
    )  # fmt: skip
    for k in range(x.shape[0]):
        scout.step(x[k : k + 1], first + k)
        for part, count in scout.counts.items():
            name_bad_count(count, part, first + k, name)
    raise StateRangeError(f"{name}: a state left the exact range |h| < 2^20 in steps {step_range(x, first)}")


def _multiply_only(h: Tensor, zi: Tensor) -> Tensor:
    """h * zi / 1024 to the nearest count; what the rounding loses is not kept."""
    return (h * zi).mul_(1 / _FORGET_NOTHING).round_()


def _stage_columns(cell: Cell, units: int) -> list[slice]:
    """Which columns of the projected input each stage reads."""
    columns, first = [], 0
    for stage in cell.stages:
        columns.append(slice(first * units, (first + stage.blocks) * units))
        first += stage.blocks
    return columns


def _rows_by_step(resets: Tensor) -> dict[int, Tensor]:
    """The rows that begin anew before a step, by the step, of those at which any does."""
    steps, rows = resets.nonzero(as_tuple=True)
    found, counts = steps.unique_consecutive(return_counts=True)
    return dict(zip(found.tolist(), rows.split(counts.tolist()), strict=True))


def _masked(value: Tensor, live: Tensor | None, otherwise: float) -> Tensor:
    return value if live is None else torch.where(live, value, otherwise)
