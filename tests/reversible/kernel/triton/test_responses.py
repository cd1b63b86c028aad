"""Responses in Triton: the CPU kernel's bits there and back, and those of gradients but for sums over positions."""

from typing import Any

import pytest
import torch
from torch import Tensor

import revtune as rt
from revtune.reversible.kernel import backend
from revtune.reversible.kernel.engine import operators
from tests.chunking import set_chunk_steps, set_stack_chunk_steps
from tests.in_triton import BOTH, layers_agree, masks_of, some_slow, there_and_back, tuners_steps_agree
from tests.replayed import replaying
from tests.stored import problem, response_pairs

pytestmark = pytest.mark.skipif(not backend.load(), reason="there is no C++ kernel to compare with")

KINDS = ("RevGRU", "RevLSTM", "NF-RevGRU", "NF-RevLSTM", "unbounded RevLSTM")
RESETS = torch.tensor([[False, True, False], [False] * 3, [True, False, False], [False] * 3])


@pytest.mark.parametrize(
    ("kind", "bits", "hidden", "kept", "names"),
    some_slow(
        ("RevGRU", None, 6, 1, ("ih", "hh")), ("RevLSTM", 3.0, 4, 1, ("ih", "hh")),
        *((kind, bits, 40, kept, ("ih", "hh")) for kind in KINDS for bits, kept in ((1.0, 0), (None, 4))),
        *((kind, None, 6, 1, (name,)) for kind in KINDS[:2] for name in ("ih", "hh")), quick=2,
    ),
)  # fmt: skip
def test_a_layer_that_recalls(
    kind: str, bits: float | None, hidden: int, kept: int, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias for each row, chunks that are recalled and kept, rows that end and begin anew, one response alone."""
    set_chunk_steps(monkeypatch, 2)
    monkeypatch.setattr(
        "revtune.reversible.kernel.sequence_recall.kept_steps", lambda given: kept if given.train else 0
    )
    of = problem(kind, 4, bits=bits, hidden=hidden, inputs=3, spread=0.4)
    of.weights["bias"] = of.weights["bias"] + torch.arange(3.0).unsqueeze(-1)
    options: dict[str, Any] = {"masks": masks_of(of), "lengths": torch.tensor([4, 2, 3]), "resets": RESETS}
    found = layers_agree(of, responses=response_pairs(of, names=names), **options)
    assert all(bool(grad.any()) for grad in found.grads.values())
    assert not torch.equal(found.y, rt.scan(of.cell, of.x, of.state, weights=of.weights, **options)[0])


@pytest.mark.parametrize(
    ("kind", "hidden", "rows"),
    some_slow(
        ("RevGRU", 6, 3),
        ("RevLSTM", 4, 2),
        *((kind, 42, 17) for kind in KINDS[:2]),
        *((kind, 42, 3) for kind in KINDS[2:]),
        quick=2,
    ),
)
def test_there_and_back(kind: str, hidden: int, rows: int) -> None:
    """Inputs that a tile takes in two goes; rows that end and begin anew."""
    of = problem(kind, 4, bits=None, hidden=hidden, rows=rows, inputs=3, spread=0.8)
    lengths = 4 - torch.arange(rows) % 4
    resets = RESETS[:, torch.arange(rows) % 3] & (torch.arange(4).unsqueeze(-1) < lengths)
    options = {"masks": masks_of(of), "lengths": lengths, "resets": resets, "chunk": 2}
    assert there_and_back(of, responses=response_pairs(of), **options).buffer.words > 0


@pytest.mark.parametrize("rows", [1, 3])
def test_what_is_added_and_given_back(rows: int) -> None:
    """The bits of the CPU kernel's operators, for rows that take turns, and by an index; outputs lie apart."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    steps, outputs = 4, 300
    products, d, scale, bias = random(steps * rows, outputs), random(steps * rows, outputs), *random(2, rows, outputs)
    index, wide = torch.randint(rows, (steps * rows,), generator=generator), random(steps * rows, outputs + 3)
    for own in (None, bias):
        for at in (None, index):
            found, wanted = wide.clone()[:, 1 : 1 + outputs], wide.clone()[:, 1 : 1 + outputs]
            operators("triton").add_answer(found, products, scale, own, at)
            operators("native").add_answer(wanted, products, scale, own, at)
            assert torch.equal(found, wanted) and not torch.equal(found, wide[:, 1 : 1 + outputs])
    for summed in (False, True):
        for scaled in (False, True):
            both = [(products.clone(), bias.clone()) for _ in BOTH]
            for engine, (there, into) in zip(BOTH, both, strict=True):
                operators(engine).scale_back(there, d, scale, into if summed else None, scaled)
            assert all(map(torch.equal, *both))
            assert torch.equal(both[0][0], products) != scaled and torch.equal(both[0][1], bias) != summed


@pytest.mark.slow
@pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
@pytest.mark.parametrize("level", ["train", "valid"])
def test_a_tuners_streamed_step(rev: Any, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that are run, rewound and recorded, with tuned dropouts, and weights dropped with V's under one mask."""
    set_stack_chunk_steps(monkeypatch, 2)
    tuners_steps_agree(rev, "stn", level)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[:2])
def test_replayed_chunks_have_the_same_bits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """V, s and the answers that are noted lie elsewhere each time; launches over their rooms stand for a CUDA graph."""
    recorder = replaying(monkeypatch)
    set_chunk_steps(monkeypatch, 2)
    for seed in range(2):
        of = problem(kind, 4, hidden=4, inputs=2, rows=2)
        layers_agree(of, responses=response_pairs(of, seed=seed))
        there_and_back(of, responses=response_pairs(of, seed=seed), chunk=2)
    assert recorder.replays > 4
