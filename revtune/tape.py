"""One layer in one direction, in motion: states on the grid, what rewinding needs, and the gradient of a rewound chunk.

A tape runs chunk by chunk. Forward it keeps its present state, the information buffer and one checksum a chunk;
backward it rewinds a
chunk, which recomputes every gate, and runs the gradient of that chunk with the recomputed values:

- `forward` pushes what is forgotten; `preview` is the same arithmetic with the words dropped; `infer` has no buffer at
all.
- `record` runs the last chunk once, keeping its gates, so that the turn-around neither spills nor rewinds.
- `rewind` undoes a chunk that `forward` ran; `gradient` consumes the chunk that `record` or `rewind` left.

Gradients are autograd's, stage by stage and step by step, over exactly recomputed values (moments.py): whoever writes
a cell writes its forward equations only.

Shapes: K steps of a chunk, B batch, I input, N units of a part, H output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from revtune import fixed, metering
from revtune.buffer import Buffer, default_share, ideal_bits
from revtune.cells import Cell, Step
from revtune.checks import LARGEST_COUNT, check_input, checksum, name_bad_count
from revtune.errors import ReversalError, StateRangeError
from revtune.moments import Moment, RecordingStep
from revtune.weights import Rows, Weights

Multiply = Callable[[Tensor, Tensor], Tensor]
_KEEP_ALL = float(fixed.FORGET_ONE)


class Place(NamedTuple):
    """Where a sequence stands: counts (B, N) by part, and the heads of the buffer, or None for new ones."""

    counts: dict[str, Tensor]
    heads: Tensor | None = None


class Tape:
    """A cell over time, for a batch of sequences.

    Args:
        cell: which cell.
        weights: the layer's weights.
        start: the state at time 0.
        steps: how long the sequence is; decides how many units share a head.
        dtype: float32 or float64, of gates and outputs.
        masks: locked masks (B, N) on the parts as the cell reads them.
        lengths: steps of each row, shape (B,); beyond its length a row keeps its state and forgets nothing.
        name: what errors call this layer.
        share: units a head; `default_share` of the steps by default.
    """

    def __init__(
        self,
        cell: Cell,
        weights: Weights,
        start: Place,
        *,
        steps: int,
        dtype: torch.dtype,
        masks: Mapping[str, Tensor] | None = None,
        lengths: Tensor | None = None,
        name: str = "",
        share: int | None = None,
    ) -> None:
        self.cell, self.weights, self.dtype, self.name = cell, weights, dtype, name or cell.name
        self.lengths, self.masks = lengths, dict(masks or {})
        self._shortest = int(lengths.min()) if lengths is not None else steps
        self.units = start.counts[cell.parts[0]].shape[-1]
        self._share = default_share(steps, len(cell.parts)) if share is None else share
        self._columns = _stage_columns(cell, self.units)
        self.counts: dict[str, Tensor] = {}
        self._floats: dict[str, Tensor] = {}
        self._reads: dict[str, Tensor] = {}
        self._moments: list[list[Moment]] = []
        self.direction: dict[str, Tensor] = {}
        self.final = start
        self.restart(start)
        self._peak = torch.zeros((), dtype=torch.float64, device=self.buffer.heads.device)

    def copy(self) -> Tape:
        """A tape that rewinds on its own, leaving this one as it is."""
        other = copy.copy(self)
        other.buffer, other.weights = self.buffer.copy(), self.weights.fresh()
        for name in ("counts", "_floats", "_reads", "_moments", "_checks", "direction"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def restart(self, place: Place) -> None:
        """Stand at this place with nothing spilled."""
        rows, parts = place.counts[self.cell.parts[0]].shape[0], self.cell.parts
        device = place.counts[parts[0]].device
        self.buffer = Buffer(rows, self.units, parts=len(parts), share=self._share, device=device)
        if place.heads is not None:
            self.buffer.heads.copy_(place.heads)
        self._checks: list[int] = []
        self._ideal, self._spilled = 0.0, 0
        for part in parts:
            self._set(part, place.counts[part])

    def standing(self) -> Place:
        """Where this tape stands now."""
        return Place(dict(self.counts), self.buffer.heads.clone())

    def forward(self, x: Tensor, first: int) -> Tensor:
        """Run a chunk (K, B, I), whose first step is `first`, so that it can be rewound. Returns outputs (K, B, H)."""
        self._checks.append(self._checksum())
        y = self._advance(x, first, self._metered_multiply if metering.active() else self.buffer.multiply)
        self.buffer.seal()
        self._spilled += self._unit_steps(x, first)
        return y

    def preview(self, x: Tensor, first: int) -> Tensor:
        """Run a chunk with `forward`'s arithmetic to the last bit, keeping nothing to rewind it."""
        y = self._advance(x, first, self.buffer.multiply)
        self.buffer.discard()
        return y

    def infer(self, x: Tensor, first: int) -> Tensor:
        """Run a chunk without a buffer. The ten lowest bits of a state, 2^-22 of it, differ from `forward`'s."""
        return self._advance(x, first, _multiply_only)

    def record(self, x: Tensor, first: int) -> Tensor:
        """Run the last chunk, keep its gates, and stand again where it began; `final` is where it ended.

        Shapes as in `forward`.
        """
        start, projected, y = self.standing(), self._project(x, first), self._outputs(x)
        self._moments = []
        for k, row in enumerate(projected):
            self._moments.append([self._record(row, i, first + k, first=k == 0) for i in range(len(self.cell.stages))])
            self._watch()
            self._write(y[k])
        self._inspect(x, first, start)
        self.buffer.discard()
        self.final = self.standing()
        assert start.heads is not None
        self.buffer.heads.copy_(start.heads)
        for part, count in start.counts.items():
            self._set(part, count)
        return y

    def rewind(self, x: Tensor, first: int) -> Tensor:
        """Undo the chunk that `forward` ran last, keeping its gates for `gradient`. Returns its outputs (K, B, H).

        Raises:
            ReversalError: the state, the heads or the depth of the buffer is not what it was before the chunk.
        """
        projected, y = self._project(x, first), self._outputs(x)
        self._moments = []
        try:
            for k in reversed(range(x.shape[0])):
                self._write(y[k])
                stages = reversed(range(len(self.cell.stages)))
                self._moments.append([self._undo(projected[k], i, first + k) for i in stages][::-1])
        except ReversalError as error:
            raise ReversalError(self._explain(x, first, str(error))) from None
        self._moments.reverse()
        if self._checksum() != self._checks.pop():
            raise ReversalError(self._explain(x, first, "the state differs from the one recorded before these steps"))
        return y

    def gradient(self, x: Tensor, dy: Tensor | None, *, keep: bool = False) -> Tensor:
        """Carry the gradient back through the chunk that `record` or `rewind` left.

        Args:
            x: the chunk's input, (K, B, I).
            dy: gradient of its outputs, (K, B, H), or None for zero.
            keep: whether the same chunk will be asked again.

        Returns:
            The gradient of the input, (K, B, I). That of the state before the chunk is in `direction`, those of
            weights are added up in `weights`.
        """
        dx = x.new_zeros(*x.shape[:2], self.cell.blocks * self.units)
        products: dict[tuple[str, Rows], tuple[list[Tensor], list[Tensor]]] = {}
        for part in self.cell.parts:
            self.direction.setdefault(part, torch.zeros_like(self._floats[part]))
        for k in reversed(range(x.shape[0])):
            if dy is not None:
                self._add_output_gradient(dy[k])
            for moment, columns in zip(reversed(self._moments[k]), reversed(self._columns), strict=True):
                grad, read, found = moment.gradient(self.direction, self.masks, keep=keep)
                if grad is not None:
                    dx[k, :, columns] = grad
                for name, piece in read.items():
                    self.weights.add(name, piece)
                for name, rows, value, piece in found:
                    values, grads = products.setdefault((name, rows), ([], []))
                    values.append(value)
                    grads.append(piece)
            if not keep:
                self._moments[k] = []
        self.weights.add_products(products)
        return self.weights.project_gradient(x, dx)

    def state(self, place: Place | None = None) -> tuple[Tensor, ...]:
        """A state, by default the present one, as exact float64 values, (B, H) for each of the cell's states."""
        counts = (place or Place(self.counts)).counts
        return tuple(fixed.from_counts(torch.cat([counts[part] for part in group], -1)) for group in self.cell.states)

    def usage(self) -> tuple[int, float, int]:
        """Bits stored, bits forgotten (while a meter runs), and units times steps, of the chunks that `forward` ran."""
        return (self.buffer.stored_bits if self._spilled else 0), self._ideal, self._spilled

    def _record(self, row: Tensor, index: int, step: int, *, first: bool) -> Moment:
        moment, live = self._moment(row, index, step)
        for place, part in enumerate(self.cell.stages[index].changes):
            z, u = moment.update(place)
            if first and z is not None:
                self._check_gate(z, part)
            moment.moved(place, self._floats[part])
            self._couple(part, z, u, live, self.buffer.multiply)
        if first:
            moment.check_closed()
        return moment

    def _undo(self, row: Tensor, index: int, step: int) -> Moment:
        moment, live = self._moment(row, index, step)
        for place, part in reversed(list(enumerate(self.cell.stages[index].changes))):
            z, u = moment.update(place)
            h = self.counts[part] - _masked(fixed.to_counts(u), live, 0.0)
            if z is not None:
                h = self.buffer.divide(h, _masked(fixed.forget_integer(z), live, _KEEP_ALL))
            self._set(part, h)
            moment.moved(place, self._floats[part])
        return moment

    def _moment(self, row: Tensor, index: int, step: int) -> tuple[Moment, Tensor | None]:
        live = self._live(step)
        reading = RecordingStep(row[:, self._columns[index]], self._reads, self.weights.tensors, self.weights.responses)
        return Moment(self.cell.stages[index], reading, live), live

    def _advance(self, x: Tensor, first: int, multiply: Multiply) -> Tensor:
        start = Place(dict(self.counts))
        y = self._run(x, first, multiply)
        self._inspect(x, first, start)
        return y

    def _run(self, x: Tensor, first: int, multiply: Multiply) -> Tensor:
        projected, y = self._project(x, first), self._outputs(x)
        for k, row in enumerate(projected):
            live = self._live(first + k)
            for stage, columns in zip(self.cell.stages, self._columns, strict=True):
                step = Step(row[:, columns], self._reads, self.weights.tensors, self.weights.responses)
                step.forbidden = stage.changes
                gates = stage.gates(step)
                for coupling in stage.couplings:
                    step.forbidden = (coupling.part,)
                    z, u = coupling.update(step, *gates)
                    if k == 0 and z is not None:
                        self._check_gate(z, coupling.part)
                    self._couple(coupling.part, z, u, live, multiply)
            self._watch()
            self._write(y[k])
        return y

    def _couple(self, part: str, z: Tensor | None, u: Tensor, live: Tensor | None, multiply: Multiply) -> None:
        h = self.counts[part]
        if z is not None:
            h = multiply(h, _masked(fixed.forget_integer(z), live, _KEEP_ALL))
        self._set(part, h + _masked(fixed.to_counts(u), live, 0.0))

    def _metered_multiply(self, h: Tensor, zi: Tensor) -> Tensor:
        self._ideal += ideal_bits(zi)
        return self.buffer.multiply(h, zi)

    def _set(self, part: str, count: Tensor) -> None:
        self.counts[part] = count
        self._floats[part] = fixed.from_counts(count, self.dtype)
        self._reads[part] = self._floats[part] * self.masks[part] if part in self.masks else self._floats[part]

    def _live(self, step: int) -> Tensor | None:
        """Which rows still run at this step, (B, 1); None when all do."""
        return None if self.lengths is None or step < self._shortest else (self.lengths > step).unsqueeze(-1)

    def _unit_steps(self, x: Tensor, first: int) -> int:
        """Units times steps of a chunk, padding left out."""
        steps, rows = x.shape[:2]
        live = steps * rows if self.lengths is None else int((self.lengths - first).clamp(0, steps).sum())
        return live * self.units * len(self.cell.parts)

    def _project(self, x: Tensor, first: int) -> Tensor:
        check_input(x, first, self.name)
        return self.weights.project(x)

    def _outputs(self, x: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:2], self.units * len(self.cell.states[0]), dtype=self.dtype)

    def _write(self, y: Tensor) -> None:
        torch.cat([self._floats[part] for part in self.cell.states[0]], -1, out=y)

    def _add_output_gradient(self, dy: Tensor) -> None:
        for part, columns in zip(self.cell.states[0], dy.split(self.units, -1), strict=True):
            self.direction[part] = self.direction[part] + columns

    def _checksum(self) -> int:
        return checksum(self.buffer.words, (*self.counts.values(), self.buffer.heads))

    def _check_gate(self, z: Tensor, part: str) -> None:
        if not fixed.is_rounded(z):
            raise ValueError(
                f"{self.name}: the multiplier of part {part!r} must be a multiple of 1/1024 in [1/1024, 1]; "
                "make it with forget_gate"
            )

    def _watch(self) -> None:
        if not self.cell.bounded:
            for count in self.counts.values():
                torch.maximum(self._peak, count.abs().amax(), out=self._peak)

    def _inspect(self, x: Tensor, first: int, start: Place) -> None:
        """Find states out of range and non-finite numbers, once a chunk; NaN fails the comparison too."""
        peak = self._peak
        for count in self.counts.values():
            peak = torch.maximum(peak, count.abs().amax())
        if not bool(peak < LARGEST_COUNT):
            self._name_bad_state(x, first, start)

    def _name_bad_state(self, x: Tensor, first: int, start: Place) -> None:
        """Run the chunk again, step by step, to say where the state went wrong."""
        scout = self.copy()
        scout.cell = replace(self.cell, bounded=True)
        scout.restart(start)
        for k in range(x.shape[0]):
            scout._run(x[k : k + 1], first + k, _multiply_only)
            for part, count in scout.counts.items():
                name_bad_count(count, part, first + k, self.name)
        raise StateRangeError(f"{self.name}: a state left the exact range |h| < 2^20 in steps {_steps(x, first)}")

    def _explain(self, x: Tensor, first: int, what: str) -> str:
        return (
            f"{self.name}, steps {_steps(x, first)}: rewinding failed, {what}. Something computed a gate "
            "differently in the two directions: weights changed through .data between forward and backward, a cell "
            "that is random or reads anything but its step, or a matrix product that does not repeat. "
            "No gradient was produced."
        )


def _multiply_only(h: Tensor, zi: Tensor) -> Tensor:
    """h * zi / 1024 to the nearest count, with nothing kept of what that loses."""
    return (h * zi).mul_(1 / _KEEP_ALL).round_()


def _stage_columns(cell: Cell, units: int) -> list[slice]:
    """Which columns of the projected input each stage reads."""
    columns, first = [], 0
    for stage in cell.stages:
        columns.append(slice(first * units, (first + stage.blocks) * units))
        first += stage.blocks
    return columns


def _steps(x: Tensor, first: int) -> str:
    return f"{first}..{first + x.shape[0] - 1}"


def _masked(value: Tensor, live: Tensor | None, otherwise: float) -> Tensor:
    return value if live is None else torch.where(live, value, otherwise)
