"""What a layer or a recording keeps, damaged at random: a ReversalError, or the very same numbers."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import revtune as rt
from revtune.reversible.cells.word_store import WordStore
from revtune.reversible.kernel import sequence_recall as recall
from tests.backends import on_native, real
from tests.stored import problem

BACKENDS = ("reference", "native")
Damage = Callable[[Tensor, random.Random], Tensor]
nets = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
KEPT = ("outputs", "final state", "gates", "words and heads", "facts", "input")
"""What a layer in the kernel saves first, in this order."""


def flipped(tensor: Tensor, rng: random.Random) -> Tensor:
    """One bit."""
    tensor = tensor.detach().clone()
    if tensor.numel():
        tensor.view(torch.uint8).flatten()[rng.randrange(tensor.nbytes)] ^= 1 << rng.randrange(8)
    return tensor


def one_changed(tensor: Tensor, rng: random.Random) -> Tensor:
    """One number, to one that might stand there."""
    tensor = tensor.detach().clone()
    if tensor.numel():
        tensor.flatten()[rng.randrange(tensor.numel())] = rng.choice([-1, 0, 1, 2**14, -(2**15)])
    return tensor


DAMAGES: dict[str, Damage] = {
    "flipped": flipped,
    "changed": one_changed,
    "cut": lambda tensor, rng: tensor[: rng.randrange(max(1, len(tensor)))],
    "emptied": lambda tensor, rng: tensor[:0],
    "longer": lambda tensor, rng: torch.cat([tensor, tensor[: rng.randrange(1, max(2, len(tensor)))]]),
    "zeros": lambda tensor, rng: torch.zeros_like(tensor),
    "ones": lambda tensor, rng: torch.full_like(tensor, -1),
    "rolled": lambda tensor, rng: tensor.roll(rng.randrange(1, 9)),
}

IN_PLACE = ("flipped", "changed", "zeros", "ones")
"""Those that leave a tensor its shape, and heads no chance to come out the same."""


class Hooks:
    """Hooks of saved tensors, as those that compress or move them: one tensor comes back damaged.

    Args:
        place: which, counted as they are saved; None for none.
    """

    def __init__(self, place: int | None, damage: Damage, seed: int) -> None:
        self._place, self._damage, self._rng, self._saved = place, damage, random.Random(seed), 0

    def pack(self, tensor: Tensor) -> tuple[int, Tensor]:
        self._saved += 1
        return self._saved - 1, tensor

    def unpack(self, packed: tuple[int, Tensor]) -> Tensor:
        place, tensor = packed
        return self._damage(tensor, self._rng) if place == self._place else tensor


def gradients(rev: Any, hooks: Hooks) -> list[Tensor]:
    torch.manual_seed(0)
    net, x = rev(4, 8, max_forget_bits=2.0), torch.randn(30, 3, 4, requires_grad=True)
    with saved_tensors_hooks(hooks.pack, hooks.unpack):
        y, _ = net(x)
    return list(torch.autograd.grad(y.square().sum(), [x, *net.parameters()]))


@on_native
@nets
@pytest.mark.parametrize("kept_bytes", [0, 4000])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("what", KEPT)
def test_what_a_layer_saves(rev: Any, kept_bytes: int, damage: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "KEPT", kept_bytes)
    monkeypatch.setattr(recall, "chunk_steps", lambda *_: 7)
    undamaged = gradients(rev, Hooks(None, DAMAGES[damage], 0))
    for seed in range(4):
        try:
            grads = gradients(rev, Hooks(KEPT.index(what), DAMAGES[damage], seed))
        except rt.ReversalError:
            continue
        assert all(map(torch.equal, grads, undamaged))


def name_of_words(tape: Any) -> str:
    """The attribute of a tape's buffer that keeps the words of each chunk."""
    return "chunks" if hasattr(tape.buffer, "chunks") else "_sealed"


def outcome(recording: rt.Recording) -> bool | None:
    """Whether a recording is rewound to what it was; None for a ReversalError."""
    try:
        y, _ = rt.unscan(recording)
    except rt.ReversalError:
        return None
    return torch.equal(y, recording.y)


@pytest.mark.parametrize("kind", ["RevGRU", "RevLSTM"])
@pytest.mark.parametrize(
    "what, damage", [*(("words", damage) for damage in DAMAGES), *(("heads", d) for d in IN_PLACE)]
)
def test_what_a_recording_keeps(kind: str, what: str, damage: str) -> None:
    of = problem(kind, 60, dtype=real())
    recording = rt.record(of.cell, of.x, of.state, weights=of.weights, chunk=20)
    tape: Any = recording.tape
    assert outcome(recording) is True
    found = set()
    for seed in range(12):
        rng, heads = random.Random(seed), tape.buffer.heads
        kept = getattr(tape.buffer, name_of_words(tape))
        if what == "words":
            chunks = [words.clone() for words in kept]
            place = rng.randrange(len(chunks))
            chunks[place] = DAMAGES[damage](chunks[place], rng)
            setattr(tape.buffer, name_of_words(tape), WordStore.of(chunks))
        else:
            tape.buffer.heads = DAMAGES[damage](heads, rng)
        found.add(outcome(recording))
        setattr(tape.buffer, name_of_words(tape), kept)
        tape.buffer.heads = heads
    assert None in found and False not in found
    assert outcome(recording) is True


@pytest.mark.parametrize("kind", ["RevGRU", "RevLSTM"])
def test_a_head_that_is_off_by_less_than_one_is_refused(kind: str) -> None:
    of = problem(kind, 60, dtype=real())
    recording = rt.record(of.cell, of.x, of.state, weights=of.weights, chunk=20)
    tape: Any = recording.tape
    heads = tape.buffer.heads.clone()
    for by in (2.0**-20, 0.5):  # a head may be 2^30, and then has no finer digits
        tape.buffer.heads = heads.clone()
        tape.buffer.heads.view(-1)[1] += by
        assert outcome(recording) is None
    tape.buffer.heads = heads
    assert outcome(recording) is True
