"""Rows that start late: they keep their first state until then, as rows that have ended keep their last."""

from typing import Any

import pytest
import torch
from torch import Tensor

import revtune as rt
from revtune.reversible.kernel.backend import chosen
from revtune.reversible.kernel.engine import Engine
from revtune.reversible.kernel.tape import LayerTensors, Tape
from revtune.reversible.layers.layer import LayerSettings, build_tape
from tests.backends import in_kernel
from tests.stored import Problem, problem, relative, stored_scan

BACKENDS = ("reference", "native")
STEPS, ROWS, CHUNK = 23, 4, 5
STARTS, LENGTHS = torch.tensor([0, 7, 22, 10]), torch.tensor([23, 16, 23, 12])
SPANS = [(first, min(first + CHUNK, STEPS)) for first in range(0, STEPS, CHUNK)]
kinds = pytest.mark.parametrize("kind", ["RevGRU", "RevLSTM", "unbounded RevLSTM", "NF-RevGRU"])


def tape_of(of: Problem, **settings: Any) -> Tape:
    """A tape at the first state, all of whose tensors want a gradient."""
    state, weights = (tuple(one.clone().requires_grad_() for one in of.state),
                      {name: one.clone().requires_grad_() for name, one in of.weights.items()})  # fmt: skip
    tensors = LayerTensors(state, weights, {})
    return build_tape(of.cell, tensors, LayerSettings("tape", in_kernel(of), **settings), STEPS, of.x.dtype)


def there(tape: Tape, x: Tensor) -> Tensor:
    return torch.cat([tape.forward(x[a:b], a) for a, b in SPANS])


def back(tape: Tape, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs as they are rewound, and the gradient of the inputs."""
    outputs: list[Tensor] = []
    grads: list[Tensor] = []
    for first, last in reversed(SPANS):
        outputs.insert(0, tape.rewind(x[first:last], first).clone())
        grad = tape.gradient(x[first:last], dy[first:last])
        assert grad is not None
        grads.insert(0, grad.clone())
    return torch.cat(outputs), torch.cat(grads)


@kinds
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
def test_each_row_runs_as_it_would_alone(kind: str, lengths: Tensor | None, backend: str) -> None:
    of = problem(kind, STEPS, rows=ROWS)
    tape = tape_of(of, starts=STARTS, lengths=lengths, share=4)
    y = there(tape, of.x)
    assert tape.usage().unit_steps == int(((lengths if lengths is not None else STEPS) - STARTS).sum()) * 4 * len(
        of.cell.parts
    )
    for row in range(ROWS):
        first, last = int(STARTS[row]), STEPS if lengths is None else int(lengths[row])
        alone, _ = rt.scan(
            of.cell, of.x[first:last, [row]], tuple(one[[row]] for one in of.state), weights=of.weights, share=4
        )
        assert relative(y[first:last, row], alone[:, 0]) < 1e-6
        held = of.state[0][row].float()
        assert torch.allclose(y[:first, row], held.expand(first, -1), atol=1e-6), "the first state is kept"


@kinds
@pytest.mark.parametrize("move", ["preview", "infer"])
def test_no_buffer_starts_late_too(kind: str, move: str, backend: str) -> None:
    of = problem(kind, STEPS, rows=ROWS)
    y = there(tape_of(of, starts=STARTS), of.x)
    tape = tape_of(of, starts=STARTS)
    again = torch.cat([getattr(tape, move)(of.x[a:b], a) for a, b in SPANS])
    assert torch.equal(y, again) if move == "preview" else relative(again, y) < 1e-5


@kinds
def test_what_starts_late_comes_back(kind: str, backend: str) -> None:
    of = problem(kind, STEPS, rows=ROWS)
    tape = tape_of(of, starts=STARTS, lengths=LENGTHS)
    start = {part: count.clone() for part, count in tape.counts.items()}
    y = there(tape, of.x)
    again, _ = back(tape, of.x, torch.zeros_like(y))
    assert torch.equal(again, y) and tape.buffer.words == 0
    assert all(torch.equal(count, start[part]) for part, count in tape.counts.items())


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_of_the_rows_alone(kind: str, dtype: torch.dtype, backend: str) -> None:
    of = problem(kind, STEPS, rows=ROWS, dtype=dtype)
    x, dy = of.x.requires_grad_(), torch.randn(STEPS, ROWS, 8, dtype=dtype)
    tape = tape_of(of, starts=STARTS, lengths=LENGTHS)
    there(tape, x.detach())
    _, dx = back(tape, x.detach(), dy)
    state = [one.clone().requires_grad_() for one in of.state]
    weights = {name: one.clone().requires_grad_() for name, one in of.weights.items()}
    loss = torch.zeros((), dtype=dtype)
    for row, (first, last) in enumerate(zip(STARTS.tolist(), LENGTHS.tolist(), strict=True)):
        y, _ = stored_scan(of.cell, x[first:last, [row]], tuple(one[[row]] for one in state), weights=weights)
        held = state[0][row].to(dtype)  # a row shows its first state before it starts, and its last once it has ended
        loss = loss + (y[:, 0] * dy[first:last, row]).sum() + (held * dy[:first, row].sum(0)).sum()
        loss = loss + (y[-1, 0] * dy[last:, row].sum(0)).sum()
    wanted = torch.autograd.grad(loss, [x, *state, *weights.values()])
    got = [dx, *(torch.cat([tape.direction[part] for part in group], -1) for group in of.cell.states)]
    got += [tape.weights.gradients[name] for name in weights]
    most = 1e-4 if dtype == torch.float32 else 1e-8
    assert all(relative(a, b) < most for a, b in zip(got, wanted, strict=True))


def test_the_kernel_starts_where_the_reference_does() -> None:
    of = problem("RevLSTM", STEPS, rows=ROWS)
    tensors = LayerTensors(of.state, of.weights, {})
    engines: tuple[Engine, ...] = ("", chosen("native", of.cell, of.x, of.weights, {}))
    settings = [LayerSettings("tape", engine, starts=STARTS, lengths=LENGTHS) for engine in engines]
    tapes = [build_tape(of.cell, tensors, each, STEPS, torch.float32) for each in settings]
    one, other = (there(tape, of.x) for tape in tapes)
    assert relative(other, one) < 1e-6
    assert tapes[0].usage().unit_steps == tapes[1].usage().unit_steps


def test_starts_of_no_row_change_nothing(backend: str) -> None:
    """All rows start at once: the same bits, words among them."""
    of = problem("RevLSTM", STEPS, rows=ROWS)
    plain, given = tape_of(of), tape_of(of, starts=torch.zeros(ROWS, dtype=torch.int64))
    assert torch.equal(there(plain, of.x), there(given, of.x))
    assert plain.stored().checks == given.stored().checks


def test_a_state_that_goes_wrong_is_named_with_its_step(backend: str) -> None:
    of = problem("RevLSTM", STEPS, rows=ROWS)
    of.x[12, 1] = float("nan")
    with pytest.raises(rt.NonFiniteError):
        there(tape_of(of, starts=STARTS), of.x)
