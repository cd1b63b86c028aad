"""A tape: one layer in one direction that runs forward, rewinds, and takes the gradient of a rewound chunk.

A tape runs chunk by chunk. Forward it keeps its present state, the information buffer and one checksum a chunk.
Backward it rewinds a chunk, which recomputes every gate, and runs the gradient of that chunk with the recomputed
values:

- `forward` pushes what is forgotten; `preview` is the same arithmetic with the words dropped; `infer` has no buffer.
- `record` runs the last chunk once, keeping its gates, so that the turn-around neither spills nor rewinds.
- `rewind` undoes a chunk that `forward` ran; `gradient` consumes the chunk that `record` or `rewind` left.

There are two tapes: reference.py is plain torch, for any cell and device; native_tape.py runs the C++ kernel, for
RevGRU and RevLSTM in float32 on a CPU.

Shapes: K steps of a chunk, B batch, I input, N units of a part, H output.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from revtune.reversible.cells import fixed
from revtune.reversible.cells.cell import Cell, Response, State
from revtune.reversible.kernel.asked_once import equal, require
from revtune.reversible.kernel.weights import Weights
from revtune.reversible.meter import Usage

ANEW = "reset_state"
"""What the states from which rows begin anew are called among a layer's tensors."""


class TapePosition(NamedTuple):
    """Where a tape stands: counts (B, N) by part, and the heads of the buffer, or None for new ones."""

    counts: dict[str, Tensor]
    heads: Tensor | None = None


class Stored(NamedTuple):
    """What a tape has spilled: pieces of 16-bit words, oldest first, and a checksum below 2^64 of each chunk."""

    words: list[Tensor]
    checks: list[int]


class InformationBuffer(Protocol):
    """What the information buffers of both tapes tell of themselves."""

    heads: Tensor

    @property
    def words(self) -> int:
        """How many words are spilled."""

    @property
    def stored_bits(self) -> int:
        """The bits of words and heads."""


class Tape(ABC):
    """A cell over time, for a batch of sequences.

    Args:
        cell: which cell.
        weights: the layer's weights.
        start: the state at time 0.
        steps: how long the sequence is, which decides how many units share a head of the buffer.
        dtype: float32 or float64, of gates and outputs.
        masks: locked masks (B, N) on the parts as the cell reads them.
        lengths: the step at which each row ends, (B,); from there on it keeps its state and forgets nothing.
        starts: the first step that each row runs, (B,), before which it keeps the state at time 0; None for 0.
        resets: before which steps a row begins anew, (T, B) bool, none of them beyond its length; None for never. What
            it loses goes into the buffer whole, so that rewinding crosses it; no gradient does.
        anew: the states from which rows do so, counts (B, N) by part.
        name: what errors call this layer.
        share: how many units share a head.
        sliced: how many first units of the first part are rounded to `dtype` at each step. Their values are kept, in
            `slices`, and nothing is spilled for them.

    Attributes:
        direction: the gradient of the state that is being carried back, (B, N) by part.
        anew_direction: the gradient of the states from which rows begin anew, (B, N) by part, as far as it is wanted
            and the way back has come.
        final: the state after the last step, as `record` found it; None once it has been asked for and let go.
        reuses_outputs: whether `forward`, `preview`, `record` and `rewind` may return outputs where those of the chunk
            before them were.
        buffer: the information buffer.
        slices: the sliced units at the start and after each step, (T + 1, B, sliced).
    """

    buffer: InformationBuffer
    final: TapePosition | None = None
    reuses_outputs = False

    def __init__(
        self,
        cell: Cell,
        weights: Weights,
        start: TapePosition,
        *,
        steps: int,
        dtype: torch.dtype,
        masks: Mapping[str, Tensor] | None = None,
        lengths: Tensor | None = None,
        name: str = "",
        share: int | None = None,
        sliced: int = 0,
        resets: Tensor | None = None,
        anew: Mapping[str, Tensor] | None = None,
        starts: Tensor | None = None,
    ) -> None:
        self.cell, self.weights, self.dtype, self.name = cell, weights, dtype, name or cell.name
        self.lengths, self.starts, self.masks = lengths, starts, dict(masks or {})
        # So that no chunk waits for a device
        self.host_lengths, self.host_starts = (None if ends is None else ends.cpu() for ends in (lengths, starts))
        self.resets, self.anew, self.anew_direction = resets, dict(anew or {}), dict[str, Tensor]()
        self.rows, self.units = start.counts[cell.parts[0]].shape
        self.direction: dict[str, Tensor] = {}
        first = start.counts[cell.parts[0]]
        self.slices = first.new_empty(steps + 1 if sliced else 0, self.rows, sliced, dtype=dtype)
        self.slices[:1] = fixed.from_counts(first[:, :sliced], dtype)
        self._prepare(steps, share)
        self.restart(start)

    @abstractmethod
    def _prepare(self, steps: int, share: int | None) -> None:
        """Set up what `restart` leaves as it is."""

    @property
    @abstractmethod
    def counts(self) -> dict[str, Tensor]:
        """The present state in counts of 2^-32, (B, N) by part."""

    @property
    @abstractmethod
    def floats_per_step(self) -> int:
        """Floats that a recorded step of one row takes, which decides how long a chunk may be."""

    @abstractmethod
    def copy(self) -> Tape:
        """A tape that rewinds by itself and leaves this one as it is."""

    @abstractmethod
    def pause(self) -> None:
        """Let go of memory that only the next chunk would use again."""

    @abstractmethod
    def restart(self, position: TapePosition) -> None:
        """Go to this position, with nothing spilled."""

    @abstractmethod
    def position(self) -> TapePosition:
        """Where this tape stands now."""

    @abstractmethod
    def stored(self) -> Stored:
        """What has been spilled since the last `restart`."""

    @abstractmethod
    def take_up(self, stored: Stored) -> None:
        """Take up what another tape, of the same sequence up to here, has spilled."""

    @abstractmethod
    def forward(self, x: Tensor, first: int) -> Tensor:
        """Run a chunk (K, B, I), whose first step is `first`, so that it can be rewound. Returns outputs (K, B, H)."""

    @abstractmethod
    def preview(self, x: Tensor, first: int) -> Tensor:
        """Run a chunk with `forward`'s arithmetic to the last bit, keeping nothing to rewind it."""

    @abstractmethod
    def infer(self, x: Tensor, first: int) -> Tensor:
        """Run a chunk without a buffer. The ten lowest bits of a state, 2^-22 of it, differ from `forward`'s."""

    @abstractmethod
    def record(self, x: Tensor, first: int) -> Tensor:
        """Run the last chunk, keep its gates, and go back to where it began; `final` is where it ended."""

    @abstractmethod
    def rewind(self, x: Tensor, first: int) -> Tensor:
        """Undo the chunk that `forward` ran last, keeping its gates for `gradient`. Returns its outputs (K, B, H).

        Raises:
            ReversalError: the state, the heads or the depth of the buffer is not what it was before the chunk. On a
                device it is raised at the end of `asking_once`.
        """

    @abstractmethod
    def gradient(self, x: Tensor, dy: Tensor | None, *, keep: bool = False, wanted: bool = True) -> Tensor | None:
        """Carry the gradient back through the chunk that `record` or `rewind` left.

        Args:
            x: the chunk's input, (K, B, I).
            dy: gradient of its outputs, (K, B, H), or None for zero.
            keep: whether the gradient of the same chunk will be taken again.
            wanted: whether that of the input is wanted.

        Returns:
            The gradient of the input, (K, B, I), or None. That of the state before the chunk is in `direction`, and
            those of weights are added up in `weights`.
        """

    @abstractmethod
    def tangent(
        self, x: Tensor, first: int, dx: Tensor | None, shift: Tensor | None, start: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """How the chunk that `record` or `rewind` left would move; the tape stays as it is.

        Args:
            x: the chunk's input, (K, B, I).
            first: its first step.
            dx: the tangent of the input, or None for zero.
            shift: the tangent of the bias, (B, G), or None for zero. Responses move products by `s * (V v)`.
            start: the tangent of the state before the chunk, (B, N) by part; parts left out have none.

        Returns:
            The tangents of the outputs, (K, B, H), and of the state after the chunk.
        """

    @abstractmethod
    def ahead(
        self, x: Tensor, first: int, dx: Tensor | None, shift: Tensor | None, start: Mapping[str, Tensor], *, keep: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Run a chunk with its tangent beside it, as `forward`, or as `preview` if nothing is to be kept.

        Arguments are those of `tangent`.

        Returns:
            The outputs and their tangents, (K, B, H), and the tangent of the state after the chunk.
        """

    @property
    @abstractmethod
    def waits(self) -> bool:
        """Whether a host that asks for a number waits for a device, so that it asks as seldom as can be."""

    def aim(self, direction: dict[str, Tensor]) -> None:
        """Start the way back from this gradient of the state, (B, N) by part."""
        self.direction = direction

    def add_gradient(self, dh: Tensor) -> None:
        """Add a gradient of the present h, (B, H), to the one that is being carried back."""
        for part, columns in zip(self.cell.states[0], dh.split(self.units, -1), strict=True):
            self.direction[part] = self.direction[part] + columns

    @property
    def present(self) -> Tensor:
        """The present h, (B, H), in the numbers that outputs have."""
        return fixed.from_counts(torch.cat([self.counts[part] for part in self.cell.states[0]], -1), self.dtype)

    @abstractmethod
    def usage(self) -> Usage:
        """What the chunks that `forward` ran have stored."""

    def taken_final(self) -> TapePosition:
        """`final`, which is let go."""
        final, self.final = self.final, None
        assert final is not None
        return final

    def state(self, position: TapePosition | None = None) -> tuple[Tensor, ...]:
        """The state at a position, by default the present one, as exact float64 values: (B, H) for each cell state."""
        counts = position.counts if position else self.counts
        return tuple(fixed.from_counts(torch.cat([counts[part] for part in group], -1)) for group in self.cell.states)

    @property
    def learns_anew(self) -> bool:
        """Whether the gradient of the states from which rows begin anew is wanted."""
        return ANEW in self.weights.wanted

    @property
    def sliced(self) -> int:
        """How many units are sliced."""
        return self.slices.shape[2]

    def _check_heads(self, x: Tensor, first: int) -> None:
        """Refuse heads that are damaged by less than one: the way back would round that off, after wrong outputs."""
        heads = self.buffer.heads
        whole = equal(heads, heads.floor(), waits=self.waits)
        require(whole, lambda: self._explain(x, first, "a head of the information buffer is no whole number"))

    def _keep_slices(self, y: Tensor, first: int) -> Tensor:
        """Keep the sliced units of a chunk's outputs (K, B, H), which are returned."""
        if self.sliced:
            # Slice 0 is the first state; the slice after step t is t + 1, and `rewind` reads that before it, t.
            self.slices[first + 1 : first + 1 + len(y)] = y[:, :, : self.sliced]
        return y

    def _unit_steps(self, x: Tensor, first: int) -> int:
        """Units times rows times steps of a chunk, padding left out."""
        steps, rows = x.shape[:2]
        live = steps * rows if self.host_lengths is None else int((self.host_lengths - first).clamp(0, steps).sum())
        if self.host_starts is not None:
            live -= int((self.host_starts - first).clamp(0, steps).sum())
        return live * self.units * len(self.cell.parts)

    def _explain(self, x: Tensor, first: int, what: str) -> str:
        return (
            f"{self.name}, steps {step_range(x, first)}: rewinding failed, {what}. Something computed a gate "
            "differently in the two directions: weights changed through .data between forward and backward, a cell "
            "that is random or reads anything but its step, or a matrix product that does not repeat. "
            "No gradient was produced."
        )


class LayerTensors(NamedTuple):
    """The tensors of one layer, besides its input, that gradients flow to: first state, weights and responses.

    `anew` are the states from which rows begin anew, (B, H) or (1, H) each; none for zeros.
    """

    state: State
    weights: Mapping[str, Tensor]
    responses: Mapping[str, Response]
    anew: State = ()

    def flat(self) -> list[Tensor]:
        """All of them, in a fixed order."""
        pairs = [tensor for pair in self.responses.values() for tensor in pair]
        return [*self.state, *self.weights.values(), *pairs, *self.anew]

    def names(self) -> list[str]:
        """Their names: `state`, the weights' own, `name.V`, `name.s` of a response, and `reset_state`."""
        pairs = [f"{name}.{kind}" for name in self.responses for kind in "Vs"]
        return [*("state" for _ in self.state), *self.weights, *pairs, *(ANEW for _ in self.anew)]

    def wanted(self) -> frozenset[str]:
        """The names of those that require a gradient."""
        return frozenset(name for name, tensor in zip(self.names(), self.flat(), strict=True) if tensor.requires_grad)

    def gradients(self, tape: Tape) -> list[Tensor | None]:
        """Their gradients after the tape's way back, in the order of `flat`; None for those that want none."""
        states = [
            torch.cat([tape.direction[part] for part in group], -1).to(state.dtype) if state.requires_grad else None
            for group, state in zip(tape.cell.states, self.state, strict=True)
        ]
        names = self.names()[len(states) : len(self.flat()) - len(self.anew)]
        return [*states, *(tape.weights.gradients.pop(name, None) for name in names), *self._anew_gradients(tape)]

    def _anew_gradients(self, tape: Tape) -> list[Tensor | None]:
        """Gradients of `anew`: zeros where no row has begun anew, the sum over rows where all do so from one state."""
        grads: list[Tensor | None] = []
        for group, state in zip(tape.cell.states, self.anew, strict=False):
            found = [tape.anew_direction[part] for part in group if part in tape.anew_direction]
            if found and state.requires_grad:
                grads.append(of_rows(torch.cat(found, -1), state))
            else:
                grads.append(torch.zeros_like(state) if state.requires_grad else None)
        return grads


def of_rows(grad: Tensor, state: Tensor) -> Tensor:
    """The gradient of a state, (B, H), or (1, H) where all rows share it, from that of each row, (B, H)."""
    return (grad if len(state) == len(grad) else grad.sum(0, keepdim=True)).to(state.dtype, copy=True)


def step_range(x: Tensor, first: int) -> str:
    """The steps of a chunk, for messages."""
    return f"{first}..{first + x.shape[0] - 1}"
