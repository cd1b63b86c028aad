"""Weights and inputs whose memory is gone, or that change while they are read: named, and no end of the process."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import revtune as rt
from revtune.reversible.kernel import sequence_recall
from revtune.reversible.kernel.kernel import Kernel
from revtune.reversible.kernel.reference import ReferenceTape
from revtune.reversible.storage import check_stored
from tests.backends import real
from tests.chunking import set_stack_chunk_steps

BACKENDS = ("reference", "native")
both = pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
lost = pytest.raises(rt.ReversalError, match="has lost its memory")


def freed(tensor: Tensor) -> None:
    tensor.untyped_storage().resize_(0)


def scaled(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.mul_(1.25)


def scaled_unseen(tensor: Tensor) -> None:
    scaled(tensor.data)


@pytest.fixture(autouse=True)
def _chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five steps a chunk, with no gates kept: there are chunks before which something can happen."""
    torch.manual_seed(0)
    set_stack_chunk_steps(monkeypatch, 5)
    monkeypatch.setattr(sequence_recall, "chunk_steps", lambda *_: 5)
    monkeypatch.setattr(sequence_recall, "KEPT", 0)


class Call:
    """A net with its input and first state, and ways to run it."""

    def __init__(self, rev: Any, **options: Any) -> None:
        self.net = rev(4, 6, dtype=real(), **options)
        self.x, self.h = torch.randn(15, 3, 4, dtype=real()), torch.randn(1, 3, 6, dtype=real())
        self.state = self.h if rev is rt.RevGRU else (self.h, self.h.clone())

    def tensor(self, name: str) -> Tensor:
        found: Tensor = getattr(self if name in ("x", "h") else self.net, name)
        return found

    def layer(self) -> Tensor:
        y, state = self.net(self.x, self.state)
        total: Tensor = (state if isinstance(state, Tensor) else state[0]).square().sum()
        return total if y is None else total + y.square().sum()

    def evaluated(self) -> None:
        with torch.no_grad():
            self.layer()

    def streamed(self) -> None:
        head = rt.LinearCrossEntropy(6, 3, dtype=real())
        rt.rewind_loss(self.net, self.x, torch.randint(3, (15, 3)), readout=head, state=self.state)

    def outputs(self) -> None:
        rt.rewind_outputs(self.net, self.x, readout=nn.Linear(6, 3, dtype=real()), state=self.state)

    def encoded(self) -> None:
        rt.rewind_encode(self.net, self.x, units=2, state=self.state)


@both
@pytest.mark.parametrize("way", ["layer", "evaluated", "streamed", "outputs", "encoded"])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "x", "h"])
@pytest.mark.parametrize("output", ["all", "last"])
def test_what_is_freed_before_a_call(rev: Any, way: str, name: str, output: str) -> None:
    call = Call(rev, output=output if way in ("layer", "evaluated") else "all")
    freed(call.tensor(name))
    with lost:
        getattr(call, way)()


@both
@pytest.mark.parametrize("change", [freed, scaled, scaled_unseen])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "x"])
@pytest.mark.parametrize("output", ["all", "last"])
def test_what_changes_while_a_layers_backward_runs(
    rev: Any, change: Callable[[Tensor], None], number: int, name: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Call(rev, output=output)
    loss, calls = call.layer(), list[int]()
    for kind in (Kernel, ReferenceTape):
        gradient: Any = kind.gradient

        def disturbed(*args: Any, gradient: Any = gradient, **options: Any) -> Tensor:
            if len(calls) == number:
                change(call.tensor(name))
            calls.append(number)
            result: Tensor = gradient(*args, **options)
            return result

        monkeypatch.setattr(kind, "gradient", disturbed)
    with pytest.raises(rt.ReversalError, match="changed|has lost its memory"):
        loss.backward()
    assert len(calls) > number


@both
def test_a_weight_freed_before_a_recording_is_rewound(rev: Any) -> None:
    cell = rt.rev_gru() if rev is rt.RevGRU else rt.rev_lstm()
    weights = {"ih": torch.randn(cell.blocks * 3, 4), "hh": torch.randn(cell.blocks * 3, 3)}
    recording = rt.record(cell, torch.randn(15, 2, 4), weights=weights, chunk=5)
    freed(weights["hh"])
    with lost:
        rt.unscan(recording)


def test_views_need_their_part_of_the_storage_only() -> None:
    whole = torch.ones(5, 4)
    rows, nothing, views = whole[:2], whole[5:], {"whole": whole, "columns": whole[:, :1], "a row": whole[4]}
    whole.untyped_storage().resize_(4 * 10)
    check_stored("rows", rows)
    check_stored("nothing", nothing)
    for name, view in views.items():
        with pytest.raises(rt.ReversalError, match=f"{name} of shape .* has lost its memory"):
            check_stored(name, view)
