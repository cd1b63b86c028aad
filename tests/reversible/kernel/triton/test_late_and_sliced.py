"""Rows that start late, and units kept at every step, in Triton: the CPU kernel's bits, there and back."""

from typing import Any

import pytest
import torch
from torch import Tensor

import revtune as rt
from revtune.reversible.kernel import backend
from tests.in_triton import agree, joined, joined_graph, masks_of, moved, some_slow
from tests.stored import Problem, problem, response_pairs

pytestmark = pytest.mark.skipif(not backend.load(), reason="there is no C++ kernel to compare with")

STEPS, CHUNK = 4, 2
KINDS = ("RevGRU", "RevLSTM", "NF-RevGRU", "NF-RevLSTM", "unbounded RevLSTM")


def same(of: Problem, **settings: Any) -> dict[str, Tensor]:
    """What both kernels come to."""
    found = moved("triton", of, CHUNK, **settings)
    agree(found, moved("native", of, CHUNK, **settings), torchs=("ih", "hh", "ih.V", "hh.V"))
    return found


@pytest.mark.parametrize(
    ("kind", "ragged", "hidden"),
    some_slow(("RevGRU", False, 6), ("RevLSTM", True, 6), *((kind, True, 42) for kind in KINDS), quick=2),
)
def test_rows_that_start_late(kind: str, ragged: bool, hidden: int) -> None:
    """Of which one starts in the last chunk, and one of those that end has run no step of it."""
    of = problem(kind, STEPS, bits=None, hidden=hidden, inputs=3, spread=0.8)
    lengths = torch.tensor([4, 2, 4]) if ragged else None
    found = same(of, starts=torch.tensor([0, 1, 3]), lengths=lengths, masks=masks_of(of))
    assert found["told"][2] == (6 if ragged else 8) * hidden * len(of.state)


@pytest.mark.parametrize("kind", some_slow(*((kind,) for kind in KINDS), quick=0))
def test_rows_that_start_late_are_answered(kind: str) -> None:
    of = problem(kind, STEPS, bits=None, hidden=6, inputs=3, spread=0.8)
    settings = {"starts": torch.tensor([0, 1, 3]), "lengths": torch.tensor([4, 2, 4]), "masks": masks_of(of)}
    pairs = {name: (extra.requires_grad_(), scale.requires_grad_())
             for name, (extra, scale) in response_pairs(of).items()}  # fmt: skip
    found = same(of, responses=pairs, **settings)
    for name in ("ih.V", "ih.s", "hh.V", "hh.s"):
        assert found[name].any(), name


@pytest.mark.parametrize(
    ("kind", "hidden", "sliced", "share"),
    some_slow(
        ("RevGRU", 6, 2, 4), ("RevLSTM", 6, 2, 8), ("RevLSTM", 6, 3, 8), ("RevGRU", 6, 3, 4), ("RevGRU", 42, 17, 8),
        *((kind, 42, 5, 32) for kind in KINDS), quick=2,
    ),
)  # fmt: skip
def test_units_that_are_kept(kind: str, hidden: int, sliced: int, share: int) -> None:
    """Heads whose units take turns, and all units of h1, for which no head is left."""
    of = problem(kind, STEPS, bits=None, hidden=hidden, inputs=3, spread=0.8)
    resets = torch.tensor([[False, True, False], [False] * 3, [True, False, False], [False] * 3])
    settings = {"masks": masks_of(of), "lengths": torch.tensor([4, 2, 3]), "resets": resets}
    same(of, sliced=sliced, share=share, **settings)


@pytest.mark.parametrize("rev", [rt.RevGRU, pytest.param(rt.RevLSTM, marks=pytest.mark.slow)])
def test_an_encoder_of_ragged_rows_in_both_directions(rev: type[rt.RevGRU] | type[rt.RevLSTM]) -> None:
    def step(engine: str) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = rev(4, 6, bidirectional=True, backend=engine)
        x = torch.randn(2, 2, 4).requires_grad_()
        kept, last = rt.rewind_encode(net, x, lengths=torch.tensor([2, 1]), units=2)
        assert kept is not None
        (kept.sin().sum() + joined_graph(last).cos().sum()).backward()
        named = {"x": x, **dict(net.named_parameters())}
        grads = {f"d {name}": tensor.grad for name, tensor in named.items() if tensor.grad is not None}
        return {"kept": kept.detach(), "last": joined(last), **grads}

    weights = tuple(f"d weight_{which}_l0{way}" for which in ("ih", "hh") for way in ("", "_reverse"))
    agree(step("triton"), step("native"), torchs=weights)
