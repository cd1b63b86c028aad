"""On a GPU plain torch does not wait for its device at any step.

What it has to ask, it asks once a chunk on the way there, and on the way back once in all.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

import revtune as rt
from revtune.reversible.cells.lane_buffer import LaneBuffer, buffer_for
from tests.questions import Questions, counting
from tests.stored import KINDS, problem, response_pairs

CHUNKS = 4


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffer that a GPU would have."""
    monkeypatch.setattr("revtune.reversible.kernel.reference.buffer_for", lambda device: LaneBuffer)


def asked(kind: str, steps: int, **options: Any) -> Questions:
    """The questions of a training step in `CHUNKS` chunks, which spills words."""
    of = problem(kind, steps, bits=None)
    x = of.x.requires_grad_()
    with counting() as questions:
        y, final = rt.scan(
            of.cell, x, of.state, weights=of.weights, backend="reference", chunk=steps // CHUNKS, **options
        )  # fmt: skip
        (y.sum() + final[0].sum()).backward()
    return questions


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ragged", [False, True])
def test_no_step_asks(kind: str, ragged: bool) -> None:
    """Twice the steps in as many chunks: as many questions, though more than half as many operators again."""

    def run(steps: int) -> Questions:
        return asked(kind, steps, lengths=torch.tensor([steps, 3, steps // 2]) if ragged else None)

    few, many = run(16), run(32)
    assert many.operators > 1.5 * few.operators
    assert Counter(many.asked) == Counter(few.asked)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("chunk", "reset"), [(2, False), (8, False), (4, True)])
def test_a_way_back_asks_once(kind: str, chunk: int, reset: bool) -> None:
    """However many chunks there are, and rows that begin anew: whether all of them came back is one question."""
    of = problem(kind, 16, bits=None)
    resets = torch.arange(48).view(16, 3) % 5 == 4 if reset else None
    recording = rt.record(of.cell, of.x, of.state, weights=of.weights, backend="reference", chunk=chunk, resets=resets)
    with counting() as questions:
        y, first = rt.unscan(recording)
    assert questions.asked == ["tolist"]
    counts = (torch.round(state * 2.0**32) * 2.0**-32 for state in of.state)
    assert torch.equal(y, recording.y) and all(map(torch.equal, first, counts))


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_backward_asks_as_much_however_many_chunks_there_are() -> None:
    """Beside that, what is read again is looked at before it and after it."""

    def run(chunk: int) -> list[str]:
        of = problem("RevLSTM", 16, bits=None)
        y, _ = rt.scan(of.cell, of.x.requires_grad_(), of.state, weights=of.weights, backend="reference", chunk=chunk)
        with counting() as questions:
            y.sum().backward()
        return questions.asked

    assert Counter(run(2)) == Counter(run(8))


def _digest_changed(tape: Any) -> None:
    tape._checks[1] = tape._checks[1] + 1


def _word_lost(tape: Any) -> None:
    tape.buffer._sealed.push(tape.buffer._sealed.pop().clone()[:-1])


def _word_added(tape: Any) -> None:
    tape.buffer._sealed.push(torch.cat([top := tape.buffer._sealed.pop().clone(), top[:1]]))


def _row_moved(tape: Any) -> None:
    tape.anew["h1"][1, 2] += 1


def _row_heads_moved(tape: Any) -> None:
    real = tape.buffer.take_back

    def moved(rows: torch.Tensor, parts: int) -> list[torch.Tensor]:
        tape.buffer.heads[rows[0], 0] += 1
        counts: list[torch.Tensor] = real(rows, parts)
        return counts

    tape.buffer.take_back = moved


def _head_damaged(tape: Any) -> None:
    tape.buffer.heads[0, 0] += 0.5


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("damage", "steps", "why"),
    [
        (_digest_changed, "4..7", "the state differs from the one recorded"), (_word_lost, "12..15", "ran empty"),
        (_word_added, "12..15", "the state differs"), (_head_damaged, "12..15", "a head of the .* is no whole number"),
        (_row_moved, "8..11", "a row has not come back"), (_row_heads_moved, "8..11", "the state differs"),
    ],
)  # fmt: skip
def test_what_did_not_come_back_is_named_before_there_is_a_gradient(
    damage: Callable[[Any], None], steps: str, why: str
) -> None:
    """The chunks before it go through all the same."""
    of = problem("RevGRU", 20, bits=None)
    x, resets = of.x.requires_grad_(), torch.arange(20).view(20, 1) % 12 == torch.tensor([20, 10, 20])
    y, _ = rt.scan(
        of.cell, x, of.state, weights=of.weights, backend="reference", chunk=4, resets=resets
    )  # the last chunk is not rewound
    node: Any = y.grad_fn
    damage(node.stack.tapes[0])
    with pytest.raises(rt.ReversalError, match=rf"RevGRU, steps {steps}: rewinding failed, .*{why}"):
        y.sum().backward()
    assert x.grad is None


def test_a_cpu_keeps_the_buffer_that_asks() -> None:
    """Where asking costs nothing: this count, then, is no count of nothing."""
    few, many = asked("RevGRU", 16), asked("RevGRU", 32)
    assert len(many.asked) > len(few.asked) + 2 * 16
    assert buffer_for(torch.device("cuda")) is LaneBuffer


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("kind", ["RevGRU", "RevLSTM", "minGRU"])
@pytest.mark.parametrize("reset", [False, True])
def test_both_buffers_give_the_same_bits(kind: str, reset: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    of = problem(kind, 40, bits=None)
    pairs = response_pairs(of, names=("ih",))
    resets = torch.zeros(40, 3, dtype=torch.bool)
    resets[[7, 21, 22], [0, 1, 0]] = True

    def run() -> list[torch.Tensor]:
        x = of.x.detach().requires_grad_()
        weights = {name: weight.detach().requires_grad_() for name, weight in of.weights.items()}
        y, final = rt.scan(
            of.cell, x, of.state, weights=weights, responses=pairs, backend="reference", chunk=10,
            resets=resets if reset else None,
        )  # fmt: skip
        y.square().sum().backward()
        return [y, *final, *(tensor.grad for tensor in (x, *weights.values()) if tensor.grad is not None)]

    lanes = run()
    monkeypatch.undo()
    assert all(map(torch.equal, lanes, run()))


@pytest.mark.parametrize("trains", [False, True])
def test_a_multiplier_that_is_not_rounded_is_named(trains: bool) -> None:
    """It is asked about once a chunk, and before states are looked at, which it may have led astray."""

    def gates(step: rt.Step) -> tuple[torch.Tensor]:
        return (torch.sigmoid(step.x),)

    def update(step: rt.Step, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return z, 1.0 - z

    stage = rt.Stage(blocks=1, gates=gates, couplings=(rt.Coupling("h", update),))
    cell = rt.Cell("unrounded", states=(("h",),), stages=(stage,))
    x = torch.randn(5, 2, 3, requires_grad=trains)
    with pytest.raises(ValueError, match="unrounded: the multiplier of part 'h' must be a multiple of 1/1024"):
        rt.scan(cell, x, weights={}, chunk=2)


@pytest.mark.parametrize("rev", [rt.RevGRU, rt.RevLSTM])
@pytest.mark.parametrize("units", [1, 2, 4])
def test_units_that_are_kept_come_back_with_the_same_bits(
    rev: Any, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where some turns of the buffer have no unit left."""

    def run() -> list[torch.Tensor]:
        torch.manual_seed(0)
        net, x = rev(3, 8, backend="reference"), torch.randn(20, 3, 3, requires_grad=True)
        kept, last = rt.rewind_encode(net, x, units=units)
        (kept.square().sum() + torch.stack([*last]).sum()).backward()
        return [kept, x.grad, *(p.grad for p in net.parameters())]

    found = run()
    monkeypatch.setattr("revtune.reversible.kernel.reference.buffer_for", lambda device: LaneBuffer)
    for one, other in zip(found, run(), strict=True):
        assert torch.equal(one, other)
