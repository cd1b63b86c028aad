"""Rows that begin anew in Triton: the CPU kernel's bits, there and back across resets."""

import pytest
import torch
from torch import Tensor

import revtune as rt
from revtune.reversible.kernel import backend
from revtune.reversible.kernel.triton.launching import HEADS
from revtune.reversible.kernel.triton.stacks import words_of_a_state
from tests.chunking import set_chunk_steps
from tests.in_triton import BOTH, agree, joined, layers_agree, masks_of, recorded, some_slow, there_and_back
from tests.stored import Problem, State, problem

pytestmark = pytest.mark.skipif(not backend.load(), reason="there is no C++ kernel to compare with")

KINDS = ("RevGRU", "RevLSTM", "NF-RevGRU", "NF-RevLSTM", "unbounded RevLSTM")


def resets_of(steps: int, rows: int) -> Tensor:
    """Random ones, of the first row at the first step, of the second at the last."""
    resets = torch.rand(steps, rows, generator=torch.Generator().manual_seed(7)) < 0.3
    resets[0, 0] = resets[-1, 1] = True
    return resets


def anew_of(of: Problem) -> State:
    """One state for all rows."""
    generator = torch.Generator().manual_seed(8)
    return tuple(0.4 * torch.randn(1, state.shape[1], generator=generator, dtype=torch.float64) for state in of.state)


@pytest.mark.parametrize(
    ("kind", "hidden", "rows", "share"),
    some_slow(
        ("RevGRU", 6, 3, 4), ("RevLSTM", 6, 3, 4), ("NF-RevLSTM", 6, 3, 4), ("RevGRU", 42, 18, 8),
        *((kind, 42, 3, 32) for kind in KINDS), quick=2,
    ),
)  # fmt: skip
def test_what_is_lost_comes_back(kind: str, hidden: int, rows: int, share: int) -> None:
    """Heads whose units take turns, some not in the last one; tiles of heads of which the last is not full."""
    of = problem(kind, 4, bits=None, hidden=hidden, rows=rows, inputs=3, spread=0.8)
    options = {"masks": masks_of(of), "resets": resets_of(4, rows), "reset_state": anew_of(of), "share": share}
    assert there_and_back(of, chunk=2, **options).buffer.words > 0


@pytest.mark.parametrize(
    ("kind", "bits", "kept"),
    some_slow(
        ("RevGRU", None, 1), ("RevLSTM", 3.0, 1), *((kind, 1.0, kept) for kind in KINDS for kept in (0, 4)), quick=2
    ),
)
def test_a_layer_that_recalls(kind: str, bits: float | None, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that begins with resets and one without any; gates that are kept and evaluated again."""
    set_chunk_steps(monkeypatch, 2)
    monkeypatch.setattr(
        "revtune.reversible.kernel.sequence_recall.kept_steps", lambda given: kept if given.train else 0
    )
    of, resets = problem(kind, 5, bits=bits, hidden=6, inputs=3, spread=0.4), resets_of(5, 3)
    resets[1:3] = False
    found = layers_agree(of, masks=masks_of(of), resets=resets, reset_state=anew_of(of))
    assert all(bool(grad.any()) for grad in found.grads.values())


@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_a_layer_without_a_way_back(kind: str) -> None:
    of, resets = problem(kind, 2, hidden=6, bits=None), resets_of(2, 3)
    found, wanted = (
        rt.scan(of.cell, of.x, of.state, weights=of.weights, resets=resets, backend=engine) for engine in BOTH
    )
    assert torch.equal(found[0], wanted[0]) and all(map(torch.equal, found[1], wanted[1]))


@pytest.mark.parametrize("rev", [rt.RevGRU, pytest.param(rt.RevLSTM, marks=pytest.mark.slow)])
def test_a_streamed_step(rev: type[rt.RevGRU] | type[rt.RevLSTM], monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that are run, rewound and recorded; gradients reach the states from which rows begin anew."""
    monkeypatch.setattr("revtune.reversible.layers.stack.DEFAULT_BUDGET", 1500)

    def step(engine: str) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = rev(4, 6, max_forget_bits=3.0, backend=engine)
        x, start = torch.randn(4, 3, 4), tuple(torch.randn(1, 1, 6).requires_grad_() for _ in net.cell.states)
        anew = start if len(start) > 1 else start[0]
        head, targets = rt.LinearCrossEntropy(6, 5), torch.randint(5, (4, 3))
        loss, h = rt.rewind_loss(net, x, targets, readout=head, resets=resets_of(4, 3), reset_state=anew)
        loss.backward()
        parameters = {**dict(net.named_parameters()), **{f"start {i}": one for i, one in enumerate(start)}}
        grads = {name: tensor.grad for name, tensor in parameters.items() if tensor.grad is not None}
        assert len(grads) == len(parameters)
        return {"loss": loss.detach(), "h": joined(h), **grads}

    agree(step("triton"), step("native"), torchs=("weight_ih_l0", "weight_hh_l0"))


def test_rows_that_are_not_where_they_began_anew_are_noticed() -> None:
    of = problem("RevGRU", 2, hidden=6, bits=None)
    recording, tape = recorded("triton", of, resets=resets_of(2, 3), reset_state=anew_of(of))
    assert tape.kernel.anew is not None
    tape.kernel.anew[0, 0, 0, 0] += 1
    with pytest.raises(rt.ReversalError, match="the information buffer did not come out even"):
        rt.unscan(recording)


@pytest.mark.parametrize("turns", [1, 3])
def test_a_stack_has_room_for_rows_that_begin_anew_at_each_step(turns: int) -> None:
    """Of a cell that forgets nothing, which spills nothing else: as many words as there is room for."""
    units = HEADS * turns
    of = problem("NF-RevGRU", 2, hidden=2 * units, rows=1, inputs=2, bits=None)
    _, tape = recorded("triton", of, resets=torch.ones(2, 1, dtype=torch.bool), share=2 * turns)
    assert tape.buffer.words == 2 * words_of_a_state(turns)
