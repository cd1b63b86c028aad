"""What the two directions of torch.ops.revtune.stack hand on to each other, as tensors.

Shapes: B batch, N units of a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from revtune.errors import ReversalError
from revtune.reversible.kernel.checksum import chained, signed
from revtune.reversible.kernel.environment import NUMBERS, Environment
from revtune.reversible.kernel.tape import Stored, TapePosition
from revtune.reversible.layers.stack import Stack


class StackRecord(NamedTuple):
    """What a stack has kept of a sequence.

    Attributes:
        environment: the settings under which the sequence ran.
        prints: fingerprints of what both directions read, as rewind.py takes them.
        positions: of each tape, before the last chunk.
        stored: what each tape has spilled before it.
    """

    environment: Environment
    prints: list[int]
    positions: list[TapePosition]
    stored: list[Stored]

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """States and heads; words; and all else as whole numbers."""
        states = [tensor for counts, heads in self.positions for tensor in (*counts.values(), _present(heads))]
        words = [piece.flatten() for one in self.stored for piece in one.words]
        numbers = [*self.environment.numbers(), len(self.prints), *self.prints]
        for one in self.stored:
            numbers += [len(one.words), *(piece.numel() for piece in one.words), len(one.checks), *one.checks]
        numbers.append(chained(numbers))
        return (
            torch.cat([tensor.flatten() for tensor in states]),
            torch.cat(words) if words else torch.empty(0, dtype=torch.int16, device=device),
            torch.tensor([signed(number) for number in numbers]),
        )

    @classmethod
    def of(cls, stack: Stack, states: Tensor, words: Tensor, facts: Tensor) -> StackRecord:
        """The record that `tensors` gave, for a stack that stands at its first state.

        Raises:
            ReversalError: its numbers are not those that were packed.
        """
        *recorded, seal = [number % 2**64 for number in facts.tolist()]
        if seal != chained(recorded) % 2**64:
            raise ReversalError("the record of a sequence is not the one that was made; no gradient was produced")
        numbers = iter(recorded)
        environment = Environment.of([signed(next(numbers)) for _ in range(NUMBERS)])
        prints = [next(numbers) for _ in range(next(numbers))]
        positions, stored = [], []
        for tape in stack.tapes:
            here = tape.position()
            counts = {}
            for part, count in here.counts.items():
                counts[part], states = _taken(states, count)
            heads, states = _taken(states, _present(here.heads))
            positions.append(TapePosition(counts, heads))
            pieces = list(words.split([*(sizes := list(_listed(numbers))), len(words) - sum(sizes)]))
            words = pieces.pop()
            stored.append(Stored(pieces, list(_listed(numbers))))
        return cls(environment, prints, positions, stored)


def _listed(numbers: Iterator[int]) -> Iterator[int]:
    """As many numbers as the first says."""
    return (next(numbers) for _ in range(next(numbers)))


def _taken(flat: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """The first numbers, shaped like a tensor, and the rest."""
    return flat[: like.numel()].view(like.shape).clone(), flat[like.numel() :]


def _present(heads: Tensor | None) -> Tensor:
    assert heads is not None
    return heads
