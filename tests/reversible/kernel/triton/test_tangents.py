"""Tangents in Triton: the CPU kernel's bits, of chunks whose gates are known, and in Delta-STN's streamed step."""

from typing import Any

import pytest
import torch
from torch import Tensor

import revtune as rt
from revtune.reversible.kernel import backend
from revtune.reversible.kernel.engine import Engine
from revtune.reversible.kernel.tape import LayerTensors
from revtune.reversible.layers.layer import LayerSettings, build_tape
from tests.chunking import set_stack_chunk_steps
from tests.in_triton import agree, masks_of, some_slow, tuners_steps_agree
from tests.stored import Problem, problem, response_pairs

pytestmark = pytest.mark.skipif(not backend.load(), reason="there is no C++ kernel to compare with")

KINDS = ("RevGRU", "RevLSTM", "NF-RevGRU", "NF-RevLSTM", "unbounded RevLSTM")
STEPS, CHUNK = 4, 2


def moved(engine: Engine, of: Problem, names: tuple[str, ...], **settings: Any) -> dict[str, Tensor]:
    """Tangents of outputs and states, chunk by chunk: of the first, bias and state move, of the second inputs too."""
    generator = torch.Generator().manual_seed(3)
    dx = torch.randn(of.x.shape, generator=generator)
    shift = torch.randn(of.x.shape[1], len(of.weights["bias"]), generator=generator)
    inputs = LayerTensors(of.state, of.weights, response_pairs(of, names=names))
    tape = build_tape(of.cell, inputs, LayerSettings("tape", engine, answering=False, **settings), STEPS, of.x.dtype)
    state = {part: torch.randn(count.shape, generator=generator) for part, count in tape.counts.items()}
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for first in range(0, STEPS, CHUNK):
            part = of.x[first : first + CHUNK]
            given = (dx[first : first + CHUNK] if first else None, shift)
            y, dy, state = tape.ahead(part, first, *given, state, keep=True)
            found |= {f"y {first}": y, f"dy {first}": dy, **{f"{part} {first}": one for part, one in state.items()}}
            found = {name: one.clone() for name, one in found.items()}
    return found


@pytest.mark.parametrize(
    ("kind", "bits", "hidden", "names"),
    some_slow(
        ("RevGRU", None, 6, ("ih", "hh")), ("RevLSTM", 3.0, 6, ("ih", "hh")), ("NF-RevGRU", None, 6, ("hh",)),
        ("NF-RevLSTM", None, 6, ("ih",)), *((kind, bits, 40, ("ih", "hh")) for kind in KINDS for bits in (1.0, None)),
        *((kind, None, 6, ()) for kind in KINDS[:2]), quick=4,
    ),
)  # fmt: skip
def test_tangents_have_the_same_bits(kind: str, bits: float | None, hidden: int, names: tuple[str, ...]) -> None:
    """Rows that end and begin anew, under masks; widths that fill no tile, or one and more."""
    of = problem(kind, STEPS, bits=bits, hidden=hidden, inputs=3, spread=0.8)
    resets = torch.tensor([[False, True, False], [False] * 3, [True, False, False], [False] * 3])
    settings = {"masks": masks_of(of), "lengths": torch.tensor([4, 2, 3]), "resets": resets}
    found, wanted = (moved(engine, of, names, **settings) for engine in ("triton", "native"))
    agree(found, wanted, torchs=())
    assert all(bool(one.any()) for one in found.values())


@pytest.mark.parametrize("kind", some_slow(*((kind,) for kind in KINDS), quick=0))
def test_rows_that_start_late_move_from_there(kind: str) -> None:
    of = problem(kind, STEPS, bits=None, hidden=6, inputs=3, spread=0.8)
    settings = {"masks": masks_of(of), "lengths": torch.tensor([4, 2, 4]), "starts": torch.tensor([0, 1, 3])}
    found, wanted = (moved(engine, of, ("ih", "hh"), **settings) for engine in ("triton", "native"))
    agree(found, wanted, torchs=())
    waiting, started = found["dy 2"][:, 2]
    assert torch.equal(waiting, found["dy 0"][0, 2]) and not torch.equal(started, waiting)


@pytest.mark.slow
@pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
@pytest.mark.parametrize("level", ["train", "valid"])
def test_delta_stns_streamed_step(rev: Any, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_stack_chunk_steps(monkeypatch, 2)
    tuners_steps_agree(rev, "delta", level)
