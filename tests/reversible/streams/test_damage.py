"""Bits that are flipped in what a stream or a layer keeps: a ReversalError, whichever they are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import revtune as rt
from revtune.reversible.cells.word_store import WordStore
from revtune.reversible.layers.both_ways import ReversedStack
from revtune.reversible.layers.stack import Stack
from tests.backends import real
from tests.chunking import set_stack_chunk_steps

BACKENDS = ("reference", "native")
Damage = Callable[[Any], object]


def flip(tensor: Tensor, byte: int, bit: int = 4) -> None:
    tensor.data.view(torch.uint8).flatten()[byte] ^= 1 << bit


def stored(tape: Any) -> WordStore:
    """The words of each chunk."""
    chunks: WordStore = tape.buffer.chunks if hasattr(tape.buffer, "chunks") else tape.buffer._sealed
    return chunks


def change(chunks: WordStore, how: Callable[[list[Tensor]], object]) -> None:
    """Change what is stored as if it were a list."""
    words = [chunks.pop().clone() for _ in range(len(chunks))][::-1]
    how(words)
    for chunk in words:
        chunks.push(chunk)


def checks(tape: Any) -> list[int]:
    found: list[int] = tape.buffer.digests if hasattr(tape.buffer, "digests") else tape._checks
    return found


DAMAGES: dict[str, Damage] = {
    "first word or count": lambda tape: flip(stored(tape)[-1], 0),
    "high bit of a count": lambda tape: flip(stored(tape)[-1], 3, 7),
    "last word": lambda tape: flip(stored(tape)[0], -1),
    "head": lambda tape: flip(tape.buffer.heads, 3),
    "checksum": lambda tape: checks(tape).__setitem__(0, checks(tape)[0] ^ 1),
    "words of a chunk": lambda tape: stored(tape).pop(),
    "one word": lambda tape: change(stored(tape), lambda words: words.__setitem__(0, words[0][:-1])),
    "a checksum less": lambda tape: checks(tape).pop(0),
    "all words": lambda tape: change(stored(tape), list.clear),
}


@pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("way", [None, Stack, ReversedStack], ids=["one way", "ahead", "back"])
def test_damage_to_what_a_stream_keeps_is_a_reversal_error(rev: Any, damage: str, way: Any, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    set_stack_chunk_steps(monkeypatch, 4)
    turning = "rewind" if way is Stack else "record"  # what the stack does first on its way back
    turn, done = getattr(Stack, turning), list[Stack]()

    def damaged(stack: Stack, x: Tensor, first: int) -> Tensor:
        y: Tensor = turn(stack, x, first)
        if way in (None, type(stack)) and not done:
            DAMAGES[damage](stack.tapes[0])
            done.append(stack)
        return y

    monkeypatch.setattr(Stack, turning, damaged)
    net = rev(3, 16, dtype=real(), bidirectional=way is not None)
    head = rt.LinearCrossEntropy(16 * net.directions, 5, dtype=real())
    with pytest.raises(rt.ReversalError):
        rt.rewind_loss(net, torch.randn(16, 2, 3, dtype=real()), torch.randint(5, (16, 2)), readout=head)
