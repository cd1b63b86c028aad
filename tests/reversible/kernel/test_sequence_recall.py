"""Chunk by chunk through a sequence, and back with its gates kept or recalled."""

from typing import Any

import pytest
import torch

import revtune as rt
from revtune.reversible.kernel import sequence_recall as recall
from revtune.reversible.kernel.chunks import evened_out, spans
from revtune.reversible.kernel.sequence_arguments import SequenceArguments
from revtune.reversible.kernel.sequence_recall import RecalledLayer
from tests.stored import differentiate, problem, relative, response_pairs

BACKENDS = ("native",)
KINDS = ("RevGRU", "RevLSTM", "NF-RevGRU", "NF-RevLSTM")
kinds = pytest.mark.parametrize("kind", KINDS)
cells = pytest.mark.parametrize("kind", KINDS[:2])

FLOATS = 4 * 3 * 40
"""Bytes of the gates of a step of RevLSTM in a problem of usual size."""


def arguments(kind: str, steps: int, chunk: int) -> SequenceArguments:
    """A problem as arguments of the operator."""
    of = problem(kind, steps)
    c = of.state[1] if kind == "RevLSTM" else None
    return SequenceArguments(
        x=of.x, h=of.state[0], c=c, ih=of.weights["ih"], bias=of.weights["bias"], hh=of.weights["hh"], ih_v=None,
        ih_s=None, hh_v=None, hh_s=None, mask1=None, mask2=None, lengths=None, chunk=chunk, share=None, bits=3.0,
        forgetting=True, bounded=True, train=True, name=kind,
    )  # fmt: skip


@kinds
def test_where_chunks_end_and_what_is_kept_changes_no_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of outputs and of gradients of inputs; those of weights are sums over other pieces."""
    of, lengths = problem(kind, 23), torch.tensor([23, 1, 12])
    pairs, results = response_pairs(of), []
    for memory in (0, 5 * FLOATS, 2**30):
        monkeypatch.setattr(recall, "KEPT", memory)
        results += [differentiate(rt.scan, of, chunk=n, lengths=lengths, responses=pairs) for n in (1, 4, 22, 23)]
    for other in results[1:]:
        assert torch.equal(other.y, results[0].y) and all(map(torch.equal, other.finals, results[0].finals))
        for name, grad in results[0].grads.items():
            exact = name == "x" or name.startswith("state")
            assert torch.equal(other.grads[name], grad) if exact else relative(other.grads[name], grad) < 1e-6, name


def test_chunks_fill_their_budget_evenly() -> None:
    assert evened_out(100, 1000) == 100
    assert evened_out(100, 40) == 34
    assert evened_out(3, 0) == 3
    assert evened_out(100, 0) == 4


def test_chunks_are_evened_out_on_each_side_of_where_gates_are_kept() -> None:
    assert spans(0, 38, 24) == [slice(0, 19), slice(19, 38)]
    assert spans(38, 70, 24) == [slice(38, 54), slice(54, 70)]
    assert spans(5, 5, 3) == []
    for steps in range(1, 40):
        for most in range(1, 12):
            chunks = spans(3, 3 + steps, most)
            assert [step for one in chunks for step in range(one.start, one.stop)] == [*range(3, 3 + steps)]
            assert len(chunks) == -(-steps // most) and max(one.stop - one.start for one in chunks) <= most


def test_chunks_of_wide_layers_take_more_bytes_and_not_without_end() -> None:
    def gates(units: int, *, train: bool) -> int:
        return 4 * 12 * units * 20 * recall.chunk_steps(20, 12 * units, train)

    assert gates(64, train=True) <= recall.BUDGET < gates(550, train=True) <= recall.WIDE_BUDGET
    assert gates(550, train=False) <= recall.BUDGET
    assert recall.chunk_steps(20, 12 * 10**6, True) == 4


@cells
def test_a_lstm_keeps_words_of_c_and_a_gru_none(kind: str) -> None:
    of = problem(kind, 200)
    y, _ = rt.scan(of.cell, of.x.requires_grad_(), weights=of.weights, chunk=50)
    assert y.grad_fn is not None
    saved: Any = y.grad_fn.next_functions[0][0]  # y is a lazy clone of what the operator returns
    words = [tensor for tensor in saved.saved_tensors if tensor is not None and tensor.dtype == torch.int16]
    assert [bool(one.numel()) for one in words] == [kind == "RevLSTM"]


@cells
def test_what_is_known_of_a_chunk_must_be_found_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "KEPT", 0)
    given = arguments(kind, 12, 4)
    ran = RecalledLayer(given).forward()
    dx, grads, _ = RecalledLayer(given).backward(ran, torch.ones_like(ran.y), None, want_dx=True)
    assert dx is not None and dx.shape == given.x.shape and len(grads) == len(given.state)
    known = ran.chunks[1]
    for wrong in (known._replace(gates=known.gates ^ 1), known._replace(read=known.read ^ 1)):
        ran.chunks[1] = wrong
        with pytest.raises(rt.ReversalError, match=rf"{kind}, steps 4\.\.7: gates came out differently"):
            RecalledLayer(given).backward(ran, torch.ones_like(ran.y), None, want_dx=True)


def test_changed_words_and_heads_of_c_are_refused() -> None:
    given = arguments("RevLSTM", 60, 20)
    ran = RecalledLayer(given).forward()
    for place in (6, ran.chunks[0].words + 7, len(ran.words) - 3):
        words = ran.words.clone()
        words[place] ^= 1 << 9
        with pytest.raises(rt.ReversalError, match="No gradient was produced"):
            RecalledLayer(given).backward(ran._replace(words=words), torch.ones_like(ran.y), None, want_dx=False)
