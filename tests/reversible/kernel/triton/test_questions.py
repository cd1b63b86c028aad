"""What Triton's kernel asks its device: on the way there once a chunk, on the way back once in all."""

from typing import Any

import pytest
import torch

import revtune as rt
from revtune.reversible.kernel import backend
from revtune.reversible.kernel.sequence_recall import RecalledLayer
from tests.in_triton import recorded
from tests.questions import Questions, counting
from tests.stored import Problem, problem

pytestmark = pytest.mark.skipif(not backend.load(), reason="there is no C++ kernel to compare with")

BOTH_CELLS = pytest.mark.parametrize("kind", ["RevGRU", pytest.param("RevLSTM", marks=pytest.mark.slow)])


def small(kind: str) -> Problem:
    return problem(kind, 4, bits=None, hidden=4, inputs=2, rows=2)


@BOTH_CELLS
@pytest.mark.parametrize(("chunk", "reset"), [(1, False), (2, False), (2, True)])
def test_a_way_back_asks_once(kind: str, chunk: int, reset: bool) -> None:
    """Whether digests, words and heads of all chunks came out is one question, also where rows begin anew."""
    resets = torch.tensor([[False, True]] * 4) if reset else None
    recording, _ = recorded("triton", small(kind), chunk=chunk, resets=resets)
    with counting() as questions:
        y, _ = rt.unscan(recording)
    assert questions.asked == ["tolist"] and torch.equal(y, recording.y)


@BOTH_CELLS
def test_a_way_there_asks_once_a_chunk(kind: str) -> None:
    """What the kernel noted and how many words there are, beside whether inputs are finite."""

    def asked(chunk: int) -> list[str]:
        with counting() as questions:
            recorded("triton", small(kind), chunk=chunk)
        return questions.asked

    few, many = asked(2), asked(1)
    assert len(many) == len(few) + 2 * 2
    assert many.count("tolist") == few.count("tolist") + 2 == 4


@BOTH_CELLS
def test_a_layer_that_recalls_asks_nothing_on_its_way_back(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within its operator, which asks about all chunks when it is through; forward leaves digests on the device."""
    found: list[Questions] = []
    real = RecalledLayer.backward

    def counted(layer: RecalledLayer, *args: Any, **options: Any) -> Any:
        with counting() as questions:
            grads = real(layer, *args, **options)
        found.append(questions)
        return grads

    monkeypatch.setattr(RecalledLayer, "backward", counted)
    of, resets = small(kind), torch.tensor([[False, True]] * 4)
    weights = {name: weight.requires_grad_() for name, weight in of.weights.items()}
    y, _ = rt.scan(of.cell, of.x, of.state, weights=weights, backend="triton", chunk=2, resets=resets)
    y.sum().backward()
    assert not found[0].asked and found[0].operators > 0


@pytest.mark.parametrize("number", [0, 1])
def test_what_did_not_come_back_is_named_by_its_steps(number: int) -> None:
    """Whichever chunk it was of, once all have been rewound."""
    recording, tape = recorded("triton", small("RevGRU"), chunk=2)
    tape.buffer.digests[number] = tape.buffer.digests[number] + 1
    steps = f"{2 * number}..{2 * number + 1}"
    with pytest.raises(rt.ReversalError, match=f"RevGRU, steps {steps}: rewinding failed, the state differs"):
        rt.unscan(recording)


def test_a_layer_whose_inputs_were_changed_gives_no_gradient() -> None:
    of = small("RevGRU")
    x = of.x.requires_grad_()
    y, _ = rt.scan(of.cell, x, of.state, weights=of.weights, backend="triton", chunk=2)
    x.data[1] += 0.5
    with pytest.raises(rt.ReversalError, match="RevGRU, steps 0..1: gates came out differently in the two directions"):
        y.sum().backward()
    assert x.grad is None
