"""One layer in one direction, in motion: states on the grid, what rewinding needs, and the gradient of a rewound chunk.

A tape runs chunk by chunk. Forward it keeps its present state, the information buffer and one checksum a chunk; backward it rewinds a
chunk, which recomputes every gate, and runs the gradient of that chunk with the recomputed values:

- `forward` pushes what is forgotten; `preview` is the same arithmetic with the words dropped; `infer` has no buffer at all.
- `record` runs the last chunk once, keeping its gates, so that the turn-around neither spills nor rewinds.
- `rewind` undoes a chunk that `forward` ran; `gradient` consumes the chunk that `record` or `rewind` left.

Gradients are autograd's, stage by stage and step by step, over exactly recomputed values: whoever writes a cell writes its forward
equations only. Products with weights are taken out of that graph, so that a weight's gradient is one matmul a chunk.

Shapes: K steps of a chunk, B batch, I input, N units of a part, G gates of all stages, H output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from revtune import fixed, metering
from revtune.buffer import Buffer, default_share, ideal_bits
from revtune.cells import Cell, Coupling, Response, Stage, Step, block_rows
from revtune.errors import NonFiniteError, ReversalError, StateRangeError

_LARGEST_COUNT = fixed.STATE_RANGE * fixed.STATE_ONE
_HASH = -0x61C8864680B583EB


class _Move(NamedTuple):
    """One coupling at one step: what its gradient needs."""

    part: str
    before: Tensor
    z: Tensor | None
    z_edge: GradientEdge | None
    u_edge: GradientEdge | None
    reads: tuple[Tensor, ...]


class _Moment(NamedTuple):
    """One stage at one step: its leaves, its products and its moves."""

    x: Tensor
    parts: dict[tuple[str, bool], Tensor]
    weights: dict[str, Tensor]
    products: list[tuple[str, tuple[int, int] | None, Tensor, GradientEdge]]
    moves: list[_Move]
    live: Tensor | None


class _RecordingStep(Step):
    """A step whose reads are leaves of a small graph."""

    def __init__(self, x: Tensor, tape: Tape, stage: Stage) -> None:
        super().__init__(x.detach().requires_grad_(), tape.reads, tape.weights, tape.responses)
        self.leaves: dict[tuple[str, bool], Tensor] = {}
        self.used: dict[str, Tensor] = {}
        self.products: list[tuple[str, tuple[int, int] | None, Tensor, GradientEdge]] = []
        self.changed: tuple[str, ...] = ()
        self.forbidden = stage.changes

    def part(self, name: str) -> Tensor:
        if name in self.forbidden:
            raise ValueError(f"the gates of a stage must not read a part that the stage changes, but they read {name!r}")
        key = (name, name in self.changed)
        if key not in self.leaves:
            self.leaves[key] = self._parts[name].detach().requires_grad_()
        return self.leaves[key]

    def weight(self, name: str) -> Tensor:
        if name not in self.used:
            self.used[name] = self._weights[name].detach().requires_grad_()
        return self.used[name]

    def product(self, name: str, value: Tensor, rows: tuple[int, int] | None = None) -> Tensor:
        result = super().product(name, value, rows)
        if result.requires_grad:
            self.products.append((name, rows, value.detach(), get_gradient_edge(result)))
        return result


class Tape:
    """A cell over time, for a batch of sequences.

    Args:
        cell: which cell.
        weights: `ih` (G, I) and `bias` (G,) of the input projection, both optional, and whatever else the cell's stages name.
        start: the state at time 0 as counts, one tensor (B, N) a part.
        steps: how long the sequence is; decides how many units share a head.
        responses: response pairs (V, s) by weight.
        masks: locked masks (B, N) on the parts as the cell reads them.
        lengths: steps of each row, shape (B,); beyond its length a row keeps its state and forgets nothing.
        wanted: names of the weights whose gradient is wanted, and `name.V`, `name.s` of their responses.
        name: what errors call this layer.
        share: units a head; `default_share` of the steps by default.
    """

    def __init__(
        self,
        cell: Cell,
        weights: Mapping[str, Tensor],
        start: Mapping[str, Tensor],
        *,
        steps: int,
        responses: Mapping[str, Response] | None = None,
        masks: Mapping[str, Tensor] | None = None,
        lengths: Tensor | None = None,
        wanted: frozenset[str] = frozenset(),
        name: str = "",
        share: int | None = None,
    ) -> None:
        self.cell, self.name, self.wanted = cell, name or cell.name, wanted
        self.weights = {key: weight.detach() for key, weight in weights.items()}
        self.responses = {key: (pair[0].detach(), pair[1].detach()) for key, pair in (responses or {}).items()}
        self.masks = dict(masks or {})
        self.lengths = lengths
        self._shortest = int(lengths.min()) if lengths is not None else steps
        rows, self.units = next(iter(start.values())).shape
        self.dtype = next(iter(self.weights.values())).dtype if self.weights else torch.get_default_dtype()
        self.share = default_share(steps, len(cell.parts)) if share is None else share
        self._first_buffer(rows, next(iter(start.values())).device)
        self.counts: dict[str, Tensor] = {}
        self.floats: dict[str, Tensor] = {}
        self.reads: dict[str, Tensor] = {}
        self.restart(start)
        self._columns = _stage_columns(cell, self.units)
        self.gradients: dict[str, Tensor] = {}
        self.direction: dict[str, Tensor] = {}
        self._moments: list[list[_Moment]] = []
        self._checks: list[int] = []
        self._peak = torch.zeros((), dtype=torch.float64, device=self.buffer.heads.device)
        self.final: dict[str, Tensor] = {}
        self._check_finite_weights()

    def _first_buffer(self, rows: int, device: torch.device) -> None:
        self.buffer = Buffer(rows, self.units, parts=len(self.cell.parts), share=self.share, device=device)

    def copy(self) -> Tape:
        """A tape that rewinds on its own, leaving this one as it is."""
        other = object.__new__(Tape)
        other.__dict__.update(self.__dict__)
        other.buffer = self.buffer.copy()
        for name in ("counts", "floats", "reads", "_moments", "_checks"):
            setattr(other, name, getattr(self, name).copy())
        other.gradients, other.direction = {}, {}
        return other

    def restart(self, start: Mapping[str, Tensor]) -> None:
        """Stand at this state with an empty buffer."""
        self._first_buffer(*next(iter(start.values())).shape[:1], next(iter(start.values())).device)
        self._checks = []
        self.ideal, self.spilled = 0.0, 0
        for part in self.cell.parts:
            self._set(part, start[part])

    def forward(self, x: Tensor, first: int) -> Tensor:
        """Run a chunk so that it can be rewound; `x` is (K, B, I), `first` its first step. Returns outputs (K, B, H)."""
        self._checks.append(self._checksum())
        y = self._advance(x, first, self._metered_multiply if metering.active() else self.buffer.multiply)
        self.buffer.seal()
        self.spilled += self._unit_steps(x, first)
        return y

    def preview(self, x: Tensor, first: int) -> Tensor:
        """Run a chunk with `forward`'s arithmetic to the last bit, keeping nothing to rewind it."""
        y = self._advance(x, first, self.buffer.multiply)
        self.buffer.discard()
        return y

    def infer(self, x: Tensor, first: int) -> Tensor:
        """Run a chunk without a buffer. The ten lowest bits of a state, 2^-22 of it, differ from `forward`'s."""
        return self._advance(x, first, lambda h, zi: (h * zi).mul_(1 / fixed.FORGET_ONE).round_())

    def record(self, x: Tensor, first: int) -> Tensor:
        """Run the last chunk, keep its gates, and stand again where it began. Returns outputs (K, B, H).

        `final` then holds the state after the chunk.
        """
        kept, heads = dict(self.counts), self.buffer.heads.clone()
        projected = self._project(x, first)
        y = self._outputs(x)
        self._moments = []
        for k, row in enumerate(projected):
            live = self._live(first + k)
            self._moments.append([self._record_stage(row, i, live) for i in range(len(self.cell.stages))])
            self._write(y[k])
        self._inspect(x, first, kept, y)
        self.buffer.discard()
        self.buffer.heads = heads
        self.final = dict(self.counts)
        for part, count in kept.items():
            self._set(part, count)
        return y

    def rewind(self, x: Tensor, first: int) -> Tensor:
        """Undo the chunk that `forward` ran last, keeping its gates for `gradient`. Returns its outputs (K, B, H).

        Raises:
            ReversalError: the state, the heads or the depth of the buffer is not what it was before the chunk.
        """
        projected = self._project(x, first)
        y = self._outputs(x)
        self._moments = []
        try:
            for k in reversed(range(x.shape[0])):
                self._write(y[k])
                live = self._live(first + k)
                moments = [self._undo_stage(projected[k], i, live) for i in reversed(range(len(self.cell.stages)))]
                self._moments.append(moments[::-1])
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
            The gradient of the input, (K, B, I). That of the state before the chunk is in `direction`, those of weights are added to
            `gradients`.
        """
        dx = x.new_empty(*x.shape[:2], self.cell.blocks * self.units)
        deferred: dict[tuple[str, tuple[int, int] | None], tuple[list[Tensor], list[Tensor]]] = {}
        for part in self.cell.parts:
            self.direction.setdefault(part, torch.zeros_like(self.floats[part]))
        for k in reversed(range(x.shape[0])):
            if dy is not None:
                self._add_output_gradient(dy[k])
            for i in reversed(range(len(self.cell.stages))):
                self._stage_gradient(self._moments[k][i], dx[k, :, self._columns[i]], deferred, keep)
            if not keep:
                self._moments[k] = []
        for (name, rows), (values, grads) in deferred.items():
            self._add_product_gradient(name, block_rows(self.weights[name], rows, self.units), values, grads)
        return self._project_gradient(x, dx)

    def state(self) -> tuple[Tensor, ...]:
        """The present state as exact float64 values, one tensor (B, H) for each of the cell's states."""
        return self._values(self.counts)

    def final_state(self) -> tuple[Tensor, ...]:
        """The state after the chunk that `record` ran, as `state`."""
        return self._values(self.final)

    def usage(self) -> tuple[int, float, int]:
        """Bits stored, bits forgotten, and units times steps, of the chunks that `forward` ran."""
        return (self.buffer.stored_bits if self.spilled else 0), self.ideal, self.spilled

    def _values(self, counts: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return tuple(fixed.from_counts(torch.cat([counts[part] for part in group], -1)) for group in self.cell.states)

    # One step

    def _record_stage(self, row: Tensor, index: int, live: Tensor | None) -> _Moment:
        stage, step, gates = self._open(row, index)
        moves = []
        for place, coupling in enumerate(stage.couplings):
            z, u = self._update(step, stage, place, gates)
            before = self.floats[coupling.part]
            self._couple(coupling.part, z, u, live, self.buffer.multiply)
            moves.append(_move(coupling, before, z, u, self._early_reads(step, stage, place)))
        return _Moment(step.x, step.leaves, step.used, step.products, moves, live)

    def _undo_stage(self, row: Tensor, index: int, live: Tensor | None) -> _Moment:
        stage, step, gates = self._open(row, index)
        moves = []
        for place in reversed(range(len(stage.couplings))):
            coupling = stage.couplings[place]
            z, u = self._update(step, stage, place, gates)
            self._uncouple(coupling.part, z, u, live)
            moves.append(_move(coupling, self.floats[coupling.part], z, u, self._early_reads(step, stage, place)))
        return _Moment(step.x, step.leaves, step.used, step.products, moves[::-1], live)

    def _open(self, row: Tensor, index: int) -> tuple[Stage, _RecordingStep, tuple[Tensor, ...]]:
        stage = self.cell.stages[index]
        step = _RecordingStep(row[:, self._columns[index]], self, stage)
        with torch.enable_grad():
            return stage, step, stage.gates(step)

    def _update(
        self, step: _RecordingStep, stage: Stage, place: int, gates: Sequence[Tensor]
    ) -> tuple[Tensor | None, Tensor]:
        step.changed, step.forbidden = stage.changes[:place], (stage.changes[place],)
        with torch.enable_grad():
            return stage.couplings[place].update(step, *gates)

    @staticmethod
    def _early_reads(step: _RecordingStep, stage: Stage, place: int) -> tuple[Tensor, ...]:
        """What this coupling reads of the parts that the stage has changed before it."""
        return tuple(step.leaves[part, True] for part in stage.changes[:place] if (part, True) in step.leaves)

    def _couple(
        self, part: str, z: Tensor | None, u: Tensor, live: Tensor | None, multiply: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        h = self.counts[part]
        if z is not None:
            zi = _masked(fixed.forget_integer(z), live, float(fixed.FORGET_ONE))
            h = multiply(h, zi)
        self._set(part, h + _masked(fixed.to_counts(u.detach()), live, 0.0))

    def _metered_multiply(self, h: Tensor, zi: Tensor) -> Tensor:
        self.ideal += ideal_bits(zi)
        return self.buffer.multiply(h, zi)

    def _unit_steps(self, x: Tensor, first: int) -> int:
        """Units times steps of a chunk, padding left out."""
        steps, rows = x.shape[:2]
        live = steps * rows if self.lengths is None else int((self.lengths - first).clamp(0, steps).sum())
        return live * self.units * len(self.cell.parts)

    def _uncouple(self, part: str, z: Tensor | None, u: Tensor, live: Tensor | None) -> None:
        h = self.counts[part] - _masked(fixed.to_counts(u.detach()), live, 0.0)
        if z is not None:
            h = self.buffer.divide(h, _masked(fixed.forget_integer(z), live, float(fixed.FORGET_ONE)))
        self._set(part, h)

    def _set(self, part: str, count: Tensor) -> None:
        self.counts[part] = count
        self.floats[part] = fixed.from_counts(count, self.dtype)
        self.reads[part] = self.floats[part] * self.masks[part] if part in self.masks else self.floats[part]

    def _live(self, step: int) -> Tensor | None:
        """Which rows still run at this step, (B, 1); None when all do."""
        return None if self.lengths is None or step < self._shortest else (self.lengths > step).unsqueeze(-1)

    # One chunk

    def _project(self, x: Tensor, first: int) -> Tensor:
        self._check_finite_input(x, first)
        if "ih" not in self.weights:
            return x
        projected = F.linear(x, self.weights["ih"], self.weights.get("bias"))
        if "ih" in self.responses:
            extra, scale = self.responses["ih"]
            projected = projected + scale * F.linear(x, extra)
        return projected

    def _advance(self, x: Tensor, first: int, multiply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        projected, kept = self._project(x, first), dict(self.counts)
        y = self._outputs(x)
        for k, row in enumerate(projected):
            live = self._live(first + k)
            for stage, columns in zip(self.cell.stages, self._columns, strict=True):
                step = Step(row[:, columns], self.reads, self.weights, self.responses)
                gates = stage.gates(step)
                for coupling in stage.couplings:
                    self._couple(coupling.part, *coupling.update(step, *gates), live, multiply)
            self._watch()
            self._write(y[k])
        self._inspect(x, first, kept, y)
        return y

    def _outputs(self, x: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:2], self.units * len(self.cell.states[0]), dtype=self.dtype)

    def _write(self, y: Tensor) -> None:
        torch.cat([self.floats[part] for part in self.cell.states[0]], -1, out=y)

    # Gradients

    def _add_output_gradient(self, dy: Tensor) -> None:
        for part, columns in zip(self.cell.states[0], dy.split(self.units, -1), strict=True):
            self.direction[part] = self.direction[part] + columns

    def _stage_gradient(
        self,
        moment: _Moment,
        dx: Tensor,
        deferred: dict[tuple[str, tuple[int, int] | None], tuple[list[Tensor], list[Tensor]]],
        keep: bool,
    ) -> None:
        outputs: list[GradientEdge] = []
        grads: list[Tensor] = []
        for move in reversed(moment.moves):
            edges, cotangents = self._move_gradient(move, moment.live)
            self._early_gradient(move, moment, edges, cotangents)
            outputs += edges
            grads += cotangents
        late = {part: leaf for (part, new), leaf in moment.parts.items() if not new}
        inputs = [moment.x, *late.values(), *moment.weights.values(), *(product[3] for product in moment.products)]
        found = list(
            torch.autograd.grad(outputs, inputs, grads, retain_graph=keep, allow_unused=True, materialize_grads=False)
        )
        dx.copy_(found[0]) if found[0] is not None else dx.zero_()
        for part, grad in zip(late, found[1:], strict=False):
            self._add_read_gradient(part, grad)
        for name, grad in zip(moment.weights, found[1 + len(late) :], strict=False):
            if grad is not None and name in self.wanted:
                self._sink(name, self.weights[name]).add_(grad)
        for (name, rows, value, _), grad in zip(moment.products, found[len(found) - len(moment.products) :], strict=True):
            if grad is not None:
                values, collected = deferred.setdefault((name, rows), ([], []))
                values.append(value)
                collected.append(grad)

    def _move_gradient(self, move: _Move, live: Tensor | None) -> tuple[list[GradientEdge], list[Tensor]]:
        """Turn the gradient of the part after the coupling into that before it, and return those of z and u."""
        d = self.direction[move.part]
        z = move.z if move.z is None or live is None else torch.where(live, move.z, 1.0)
        if z is not None:
            self.direction[move.part] = d * z
        d = _masked(d, live, 0.0)
        pairs = [(move.z_edge, d * move.before)] if move.z_edge is not None else []
        pairs += [(move.u_edge, d)] if move.u_edge is not None else []
        return [edge for edge, _ in pairs if edge is not None], [grad for _, grad in pairs]

    def _early_gradient(
        self, move: _Move, moment: _Moment, edges: list[GradientEdge], cotangents: list[Tensor]
    ) -> None:
        if not (move.reads and edges):
            return
        names = [part for part, new in moment.parts if new and any(moment.parts[part, new] is leaf for leaf in move.reads)]
        leaves = [moment.parts[part, True] for part in names]
        for part, grad in zip(
            names, torch.autograd.grad(edges, leaves, cotangents, retain_graph=True, allow_unused=True), strict=True
        ):
            self._add_read_gradient(part, grad)

    def _add_read_gradient(self, part: str, grad: Tensor | None) -> None:
        if grad is not None:
            grad = grad * self.masks[part] if part in self.masks else grad
            self.direction[part] = self.direction[part] + grad

    def _add_product_gradient(self, name: str, rows: slice, values: list[Tensor], grads: list[Tensor]) -> None:
        value, grad = torch.cat(values), torch.cat(grads)
        if name in self.wanted:
            self._sink(name, self.weights[name])[rows].addmm_(grad.t(), value)
        if name in self.responses:
            extra, scale = self.responses[name]
            steps = len(values)
            if f"{name}.V" in self.wanted:
                scaled = grad * scale[:, rows].repeat(steps, 1)
                self._sink(f"{name}.V", extra)[rows].addmm_(scaled.t(), value)
            if f"{name}.s" in self.wanted:
                grad = (grad * F.linear(value, extra[rows])).view(steps, *scale[:, rows].shape)
                self._sink(f"{name}.s", scale)[:, rows].add_(grad.sum(0))

    def _project_gradient(self, x: Tensor, dx: Tensor) -> Tensor:
        if "ih" not in self.weights:
            return dx
        grad, value = dx.flatten(0, 1), x.flatten(0, 1)
        self._add_product_gradient("ih", slice(0, grad.shape[1]), list(x.unbind()), list(dx.unbind())) if (
            "ih" in self.responses
        ) else self._add_weight_gradient(grad, value)
        if "bias" in self.wanted:
            self._sink("bias", self.weights["bias"]).add_(grad.sum(0))
        back = dx @ self.weights["ih"]
        if "ih" in self.responses:
            extra, scale = self.responses["ih"]
            back = back + (dx * scale) @ extra
        return back

    def _add_weight_gradient(self, grad: Tensor, value: Tensor) -> None:
        if "ih" in self.wanted:
            self._sink("ih", self.weights["ih"]).addmm_(grad.t(), value)

    def _sink(self, name: str, like: Tensor) -> Tensor:
        """Where the gradient of this tensor is added up."""
        if name not in self.gradients:
            self.gradients[name] = torch.zeros_like(like, memory_format=torch.contiguous_format)
        return self.gradients[name]

    # Checks

    def _checksum(self) -> int:
        """64 bits of the state, the heads and the depth of the stack."""
        total = self.buffer.words
        for values in (*self.counts.values(), self.buffer.heads):
            key = torch.arange(1, 2 * values.numel(), 2, device=values.device).mul_(_HASH).view(values.shape)
            total = (total * 0x100000001B3 + int((values.to(torch.int64) * key).sum())) & (2**64 - 1)
        return total

    def _watch(self) -> None:
        if not self.cell.bounded:
            for count in self.counts.values():
                torch.maximum(self._peak, count.abs().amax(), out=self._peak)

    def _inspect(self, x: Tensor, first: int, kept: dict[str, Tensor], y: Tensor) -> None:
        """Find states out of range and non-finite numbers, once a chunk; NaN fails the comparison too."""
        peak = self._peak
        for count in self.counts.values():
            peak = torch.maximum(peak, count.abs().amax())
        if not bool(peak < _LARGEST_COUNT):
            self._name_bad_state(x, first, kept)

    def _name_bad_state(self, x: Tensor, first: int, kept: dict[str, Tensor]) -> None:
        """Run the chunk again, step by step, to say where the state went wrong."""
        scout = self.copy()
        scout.cell = Cell(self.cell.name, self.cell.states, self.cell.stages, bounded=True)
        for part, count in kept.items():
            scout._set(part, count)
        for k in range(x.shape[0]):
            scout._inspect = lambda *_: None  # type: ignore[method-assign]
            scout.infer(x[k : k + 1], first + k)
            for part, count in scout.counts.items():
                bad = ~(count.abs() < _LARGEST_COUNT)
                if bad.any():
                    self._raise_bad_state(part, count, bad, first + k)
        raise StateRangeError(f"{self.name}: a state left the exact range |h| < 2^20 in steps {first}..{first + len(x) - 1}")

    def _raise_bad_state(self, part: str, count: Tensor, bad: Tensor, step: int) -> None:
        row, unit = (int(i) for i in bad.nonzero()[0])
        value = float(fixed.from_counts(count[row, unit]))
        where = f"{self.name}: state {part}, unit {unit}, batch row {row}, step {step}"
        if value != value or value in (float("inf"), float("-inf")):
            raise NonFiniteError(f"{where} is {value}: a gate or an update is not finite (are the weights too large?)")
        raise StateRangeError(f"{where} is {value:g}, outside the exact range |h| < 2^20 = {fixed.STATE_RANGE:.0f}")

    def _check_finite_weights(self) -> None:
        pairs = {f"{key}.{kind}": t for key, pair in self.responses.items() for kind, t in zip("Vs", pair, strict=True)}
        for key, weight in {**self.weights, **pairs}.items():
            if weight.numel() and not _finite(weight):
                raise NonFiniteError(f"{self.name}: weight {key!r} is not finite: it holds {_first_bad(weight)}")

    def _check_finite_input(self, x: Tensor, first: int) -> None:
        if not _finite(x):
            k, row = (int(i) for i in (~x.isfinite()).nonzero()[0][:2])
            raise NonFiniteError(f"{self.name}: input is not finite at step {first + k}, batch row {row}: {_first_bad(x)}")

    def _explain(self, x: Tensor, first: int, what: str) -> str:
        return (
            f"{self.name}, steps {first}..{first + x.shape[0] - 1}: rewinding failed, {what}. Something computed a gate "
            "differently in the two directions: weights changed through .data between forward and backward, a cell that is "
            "random or reads anything but its step, or a matrix product that does not repeat. No gradient was produced."
        )


def _stage_columns(cell: Cell, units: int) -> list[slice]:
    """Which columns of the projected input each stage reads."""
    columns, first = [], 0
    for stage in cell.stages:
        columns.append(slice(first * units, (first + stage.blocks) * units))
        first += stage.blocks
    return columns


def _move(coupling: Coupling, before: Tensor, z: Tensor | None, u: Tensor, reads: tuple[Tensor, ...]) -> _Move:
    z_edge = get_gradient_edge(z) if z is not None and z.requires_grad else None
    u_edge = get_gradient_edge(u) if u.requires_grad else None
    return _Move(coupling.part, before, None if z is None else z.detach(), z_edge, u_edge, reads)


def _masked(value: Tensor, live: Tensor | None, otherwise: float) -> Tensor:
    return value if live is None else torch.where(live, value, otherwise)


def _finite(value: Tensor) -> bool:
    low, high = torch.aminmax(value)
    return bool(low.isfinite() & high.isfinite())


def _first_bad(value: Tensor) -> float:
    return float(value[~value.isfinite()][0])
