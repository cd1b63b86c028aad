"""The arguments of torch.ops.revtune.sequence and of its backward by name, and the tensors among them.

Shapes: T time, B batch, I input, H hidden, N = H / 2, G gates, S states of the cell (h, or h and c).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from torch import Tensor

from revtune.reversible.cells.cell import Cell, Response
from revtune.reversible.cells.gru import rev_gru
from revtune.reversible.cells.lstm import rev_lstm
from revtune.reversible.kernel.engine import Engine

DIFFERENTIABLE = ("x", "h", "c", "ih", "bias", "hh", "ih_v", "ih_s", "hh_v", "hh_s", "anew_h", "anew_c")
"""The arguments that gradients flow to. All but the last two come first."""

_TENSORS: Final = 13
"""How many arguments before the settings are tensors: those of `DIFFERENTIABLE`, two masks and lengths.

A number, as type checkers know the type of a NamedTuple's slice only where its ends are literals.
"""

_LATER: Final = 21
"""Where the tensors begin that come after the first settings: whoever wrote a graph before they were there has none."""

_LAST: Final = 24
"""Where the settings begin that come after these."""

_READ_AGAIN = {
    "h": "first state h", "c": "first state c", "ih": "weight 'ih'", "bias": "weight 'bias'", "hh": "weight 'hh'",
    "ih_v": "weight 'ih.V'", "ih_s": "weight 'ih.s'", "hh_v": "weight 'hh.V'", "hh_s": "weight 'hh.s'",
    "mask1": "mask of h1", "mask2": "mask of h2", "lengths": "lengths", "resets": "resets", "anew_h": "reset_state h",
    "anew_c": "reset_state c",
}  # fmt: skip
"""What errors call the tensors that backward reads again, but x, whose steps are in the digests of chunks."""


class SequenceArguments(NamedTuple):
    """The arguments of torch.ops.revtune.sequence, names and order as in its schema.

    Attributes:
        x: inputs, (T, B, I).
        h, c: first states, (B, H); c of a RevLSTM.
        ih, bias, hh: weights.
        ih_v, ih_s, hh_v, hh_s: pairs (V, s) of responses.
        mask1, mask2: locked masks (B, N) on h1 and h2 as the gates read them.
        lengths: steps of each row, (B,).
        chunk: the most steps of a chunk; 0 for what the budget allows, which depends on B.
        share: units that share a head of the buffer.
        bits: the limit on forgetting.
        forgetting: whether the cell forgets at all.
        bounded: whether a RevLSTM's h takes up (1 - p) of its update, or all of it.
        train: whether there may be a backward pass.
        name: what errors call this layer.
        answering: whether responses add to products, as in `Weights`.
        resets: before which steps rows begin anew, (T, B) bool.
        anew_h, anew_c: the states from which they do, (B, H) or (1, H); zeros where they are missing.
        engine: the kernel that runs it.
    """

    x: Tensor
    h: Tensor
    c: Tensor | None
    ih: Tensor | None
    bias: Tensor | None
    hh: Tensor
    ih_v: Tensor | None
    ih_s: Tensor | None
    hh_v: Tensor | None
    hh_s: Tensor | None
    mask1: Tensor | None
    mask2: Tensor | None
    lengths: Tensor | None
    chunk: int
    share: int | None
    bits: float | None
    forgetting: bool
    bounded: bool
    train: bool
    name: str
    answering: bool = True
    resets: Tensor | None = None
    anew_h: Tensor | None = None
    anew_c: Tensor | None = None
    engine: Engine = "native"

    def cell(self) -> Cell:
        """The cell, as its settings describe it."""
        if self.c is None:
            return rev_gru(self.bits, forgetting=self.forgetting)
        return rev_lstm(self.bits, forgetting=self.forgetting, bounded=self.bounded)

    @property
    def state(self) -> tuple[Tensor, ...]:
        """The first state."""
        return (self.h,) if self.c is None else (self.h, self.c)

    @property
    def anew(self) -> tuple[Tensor, ...]:
        """The state from which rows begin anew, of which there is none where that is zero."""
        return tuple(tensor for tensor in (self.anew_h, self.anew_c) if tensor is not None)

    def differentiable(self) -> list[Tensor | None]:
        """The tensors that gradients flow to."""
        return [getattr(self, field) for field in DIFFERENTIABLE]

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All tensors."""
        return (*self[:_TENSORS], *self[_LATER:_LAST])

    def settings(self) -> tuple[Any, ...]:
        """Everything but the tensors."""
        return (*self[_TENSORS:_LATER], *self[_LAST:])

    @staticmethod
    def of(tensors: Sequence[Tensor | None], settings: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments in their order, from what `tensors` and `settings` gave."""
        first = _LATER - _TENSORS
        return (*tensors[:_TENSORS], *settings[:first], *tensors[_TENSORS:], *settings[first:])

    def read_again(self) -> dict[str, Tensor]:
        """The tensors but x that backward reads again, by what errors call them."""
        return _present({label: getattr(self, field) for field, label in _READ_AGAIN.items()})

    def read(self) -> list[tuple[str, Tensor]]:
        """The tensors that are read, each after what errors call it."""
        named = {"input": self.x, **self.read_again()}
        return [(f"{self.name}: {label}", tensor) for label, tensor in named.items()]

    def weights(self) -> dict[str, Tensor]:
        """Weights by name."""
        return _present({"ih": self.ih, "bias": self.bias, "hh": self.hh})

    def responses(self) -> dict[str, Response]:
        """Pairs (V, s) by the name of the weight."""
        pairs = (("ih", self.ih_v, self.ih_s), ("hh", self.hh_v, self.hh_s))
        return {name: (v, s) for name, v, s in pairs if v is not None and s is not None}

    def masks(self) -> dict[str, Tensor]:
        """Masks by part."""
        return _present({"h1": self.mask1, "h2": self.mask2})


class BackwardArguments(NamedTuple):
    """The arguments of torch.ops.revtune.sequence_backward, names and order as in its schema.

    Attributes:
        dy: gradient of the outputs, (T, B, H), or None for zero.
        dfinal: gradient of the final state, (S, B, H), or None for zero.
        y, final, kept, words, facts: what `sequence` returned.
        wanted: for each of `DIFFERENTIABLE` whether its gradient is wanted.
        sequence: what `sequence` was given; in the schema these arguments follow one by one.
    """

    dy: Tensor | None
    dfinal: Tensor | None
    y: Tensor
    final: Tensor
    kept: Tensor
    words: Tensor
    facts: Tensor
    wanted: list[bool]
    sequence: SequenceArguments

    @classmethod
    def of(cls, arguments: Sequence[Any]) -> BackwardArguments:
        """The arguments as the operator is handed them."""
        own = len(cls._fields) - 1
        return cls._make([*arguments[:own], SequenceArguments(*arguments[own:])])


def _present(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}
