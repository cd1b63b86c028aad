"""Cells are their papers' equations, within limits and bounds; one's own is treated like ours; mistakes are named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import revtune as rt
from examples import min_gru as example
from tests.backends import on_both, real
from tests.stored import KINDS, Problem, differentiate, float_scan, make_cell, problem, relative, stored_scan

BAD = (float("nan"), float("inf"), float("-inf"))
RUNS = [(kind, "reference") for kind in KINDS] + [(kind, "native") for kind in KINDS[:4]]
every_cell = pytest.mark.parametrize(("kind", "backend"), RUNS, indirect=["backend"])


def run(of: Problem) -> tuple[Tensor, tuple[Tensor, ...]]:
    return rt.scan(of.cell, of.x, of.state, weights=of.weights)


# Equations


@pytest.mark.parametrize("bits", [1.0, 3.0, None])
@every_cell
def test_one_step_is_the_papers_equations(kind: str, bits: float | None) -> None:
    """Rounding z moves a state by at most half a 1024th of |h| and of |g|; RevLSTM's top gate is 1023/1024."""
    of = problem(kind, 1, bits=bits, rows=16, dtype=real())
    y, finals = run(of)
    exact = {name: weight.double() for name, weight in of.weights.items()}
    wanted, states = float_scan(kind, bits, of.x.double(), of.state, exact)
    largest = max(float(state.abs().max()) for state in (*of.state, *states))
    for given_state, state in zip((y, *finals), (wanted.to(y.dtype), *states), strict=True):
        torch.testing.assert_close(given_state, state, atol=4 * largest / 1024, rtol=0.0)
        assert relative(given_state, state) < 2e-3


def constant(kind: str, bits: float | None, forget: float, update: float) -> Problem:
    """A problem whose forget gates and candidates stand at these pre-activations, whatever it reads."""
    of = problem(kind, 3, bits=bits)
    blocks = {"RevGRU": "zrgzrg", "RevLSTM": "fpiogfpiog", "minGRU": "zg"}[kind.rpartition("-")[2].rpartition(" ")[2]]
    bias = torch.tensor([{"z": forget, "f": forget, "p": forget}.get(block, update) for block in blocks])
    weights = {name: torch.zeros_like(weight) for name, weight in of.weights.items()}
    weights["bias"] = bias.repeat_interleave(of.weights["bias"].numel() // len(blocks))
    return of._replace(weights=weights)


@pytest.mark.parametrize("bits", [0.5, 1.0, 2.0, 3.0, 5.0, 9.0, 20.0, None])
@pytest.mark.parametrize(("kind", "backend"), [run for run in RUNS if run[0][:2] != "NF"], indirect=["backend"])
def test_no_more_than_the_limit_is_forgotten(kind: str, bits: float | None) -> None:
    """With gates shut a state is multiplied by 2^-b, or by 1/1024 where that is more or there is no limit."""
    of = constant(kind, bits, -200.0, 0.0)
    state = tuple(torch.ones_like(tensor) for tensor in of.state)
    least = max(1, round(1024 * 2.0 ** -(20.0 if bits is None else bits))) / 1024
    _, finals = run(of._replace(x=of.x[:1], state=state))
    kept = finals[-1]
    torch.testing.assert_close(kept, torch.full_like(kept, least), atol=2.0**-20, rtol=0.0)


@settings(deadline=None, max_examples=50)
@given(st.floats(0.01, 12.0), st.floats(0, 1, width=32))
def test_a_forget_gate_is_limited_and_rounded(bits: float, z: float) -> None:
    for gates in (torch.tensor([z]), torch.tensor([z], dtype=torch.float64)):
        gate = rt.forget_gate(gates, bits)
        m = 1 - 2.0**-bits
        assert gate.item() * 1024 == int(gate.item() * 1024)
        assert abs(gate.item() - (m * z + 1 - m)) <= 0.5001 / 1024 or gate.item() == 1 / 1024


@pytest.mark.parametrize("top", [1, 700, 1023])
def test_a_forget_gate_has_a_top(top: int) -> None:
    assert rt.forget_gate(torch.tensor([1.0]), 3.0, top=top).item() == top / 1024


@pytest.mark.parametrize("bits", [0, -1.0, float("nan"), float("inf"), True, "3"])
def test_a_forget_gate_refuses_a_limit_that_is_no_positive_number(bits: Any) -> None:
    with pytest.raises(ValueError, match=f"max_forget_bits must be a positive number or None.*, got .?{bits}"):
        rt.forget_gate(torch.tensor([0.0]), bits)


@pytest.mark.parametrize("top", [0, 1025, 512.0, True, None])
def test_a_forget_gate_refuses_a_top_that_is_no_forget_integer(top: Any) -> None:
    with pytest.raises(ValueError, match=f"top must be an integer in 1..1024, the largest forget integer, got {top}"):
        rt.forget_gate(torch.tensor([0.0]), 3.0, top=top)


@on_both
@pytest.mark.parametrize("kind", ["NF-RevGRU", "NF-RevLSTM"])
def test_without_forgetting_the_update_stays_the_same_and_nothing_is_stored(kind: str) -> None:
    of = problem(kind, 1, dtype=real())
    moved = of.state[0] + torch.tensor([0.25] * 4 + [0.0] * 4)
    y, shifted = (run(of._replace(state=(first, *of.state[1:])))[0][0, :, :4] for first in (of.state[0], moved))
    torch.testing.assert_close(shifted, y + 0.25, atol=0.0 if y.dtype == torch.float64 else 1e-7, rtol=0.0)
    recording = rt.record(of.cell, of.x, of.state, weights=of.weights)
    assert recording.tape.buffer.words == 0


@pytest.mark.parametrize("bits", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("make", [rt.rev_gru, rt.rev_lstm])
def test_limits_that_are_no_positive_number_are_refused(make: Callable[[float], rt.Cell], bits: float) -> None:
    with pytest.raises(ValueError, match=f"max_forget_bits must be a positive number or None for no limit, got {bits}"):
        make(bits)


# Bounds


@on_both
def test_a_gru_state_never_leaves_one() -> None:
    """Candidates at 1 and gates that are no whole 1024ths: were only one of the two z rounded, h would drift to 1.4."""
    for forget in (-1.03, 3.33, 6.57):
        of, x = constant("RevGRU", None, forget, 20.0), torch.zeros(700, 3, 5)
        y, _ = rt.scan(of.cell, x, (torch.ones(3, 8),), weights=of.weights)
        recording = rt.record(of.cell, x, (torch.ones(3, 8),), weights=of.weights)
        assert max(float(y.abs().max()), float(recording.y.abs().max())) <= 1.001


@on_both
def test_an_lstms_h_never_leaves_one() -> None:
    of = constant("RevLSTM", None, 2.0, 20.0)
    y, _ = rt.scan(of.cell, torch.zeros(700, 3, 5), (torch.ones(3, 8), torch.ones(3, 8)), weights=of.weights)
    assert 0.9 < float(y.abs().max()) <= 1.001


@on_both
def test_a_state_of_the_papers_lstm_never_leaves_1025() -> None:
    of = constant("unbounded RevLSTM", None, 50.0, 50.0)
    y, (h, c) = rt.scan(of.cell, torch.zeros(3000, 3, 5), weights=of.weights)
    assert 900 < float(c.abs().max()) <= 1025
    assert 900 < float(h.abs().max()) <= 1025
    still, _ = rt.scan(of.cell, torch.zeros(50, 3, 5), (torch.full((3, 8), 1024.0),) * 2, weights=of.weights)
    assert float(still.abs().max()) <= 1025


@pytest.mark.parametrize("kind", ["RevGRU", "RevLSTM"])
def test_our_forgetting_cells_need_no_watch(kind: str) -> None:
    assert make_cell(kind).bounded
    assert not make_cell(f"NF-{kind}").bounded


# One's own


def test_the_example_learns_and_rewinds() -> None:
    torch.manual_seed(0)
    losses, exact = example.train(80, steps=30, rows=16, hidden=8)
    assert exact
    assert sum(losses[-5:]) / 5 < 0.3 * losses[0]


def test_the_example_runs_as_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    path = Path(example.__file__)
    source = path.read_text()
    assert 'if __name__ == "__main__":' in source
    quick = source.replace("updates: int = 200, *, steps: int = 60", "updates: int = 3, *, steps: int = 5")
    assert quick != source
    exec(compile(quick, str(path), "exec"), {"__name__": "__main__"})
    told = capsys.readouterr().out
    assert told.startswith("update   0  mean squared error ")
    assert told.endswith("rewound ten times the length it was trained on: every state bit for bit\n")


def sigmoid_halves(step: rt.Step) -> tuple[Tensor, ...]:
    z, g = step.x.chunk(2, -1)
    return rt.forget_gate(torch.sigmoid(z), None), torch.tanh(g)


def own(name: str, parts: tuple[str, ...], *stages: rt.Stage) -> rt.Cell:
    return rt.Cell(name, states=(parts,), stages=stages)


def swap_cell() -> rt.Cell:
    """Two parts, one stage: a reads b before it changes, b reads the new a; one gate serves both; `w` is used bare."""

    def first(step: rt.Step, z: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return z, torch.tanh(step.part("b")) * g

    def second(step: rt.Step, z: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return z, torch.sin(step.product("hh", step.part("a"))) + step.weight("w") * g

    return own("swap", ("a", "b"), rt.Stage(2, sigmoid_halves, (rt.Coupling("a", first), rt.Coupling("b", second))))


def swap_problem() -> Problem:
    generator = torch.Generator().manual_seed(7)
    weights = {"hh": torch.randn(4, 4, generator=generator), "w": torch.randn(4, generator=generator)}
    state = (torch.randn(3, 8, generator=generator, dtype=torch.float64),)
    return Problem(swap_cell(), torch.randn(14, 3, 8, generator=generator), state, weights)


@pytest.mark.parametrize("chunk", [3, 14])
def test_parts_read_before_and_after_they_change_get_their_gradients(chunk: int) -> None:
    of = swap_problem()
    lengths = torch.tensor([14, 5, 9])
    given, wanted = (differentiate(scan, of, chunk=chunk, lengths=lengths) for scan in (rt.scan, stored_scan))
    assert torch.equal(given.y, wanted.y)
    for name, grad in wanted.grads.items():
        assert grad.abs().max() > 0
        assert relative(given.grads[name], grad) < 1e-5, name
    recording = rt.record(of.cell, of.x, of.state, weights=of.weights, chunk=chunk)
    assert torch.equal(rt.unscan(recording)[0], recording.y)


def test_products_of_constants_have_gradients() -> None:
    def gates(step: rt.Step) -> tuple[Tensor, ...]:
        return rt.forget_gate(torch.sigmoid(step.x), 3.0), step.product("w", torch.ones_like(step.x))

    cell = own("constant", ("h",), rt.Stage(1, gates, (rt.Coupling("h", lambda step, z, u: (z, u)),)))
    of = Problem(cell, torch.randn(6, 2, 4), (torch.zeros(2, 4),), {"w": torch.randn(4, 4)})
    given, wanted = (differentiate(scan, of, chunk=2) for scan in (rt.scan, stored_scan))
    assert relative(given.grads["w"], wanted.grads["w"]) < 1e-5


def test_a_cell_may_ignore_its_input_and_decay() -> None:
    def update(step: rt.Step) -> tuple[Tensor, Tensor]:
        return torch.full_like(step.x, 0.5), torch.zeros_like(step.x)

    cell = own("decay", ("h",), rt.Stage(1, lambda step: (), (rt.Coupling("h", update),)))
    state = torch.randn(2, 4).requires_grad_()
    x = torch.randn(6, 2, 4).requires_grad_()
    y, _ = rt.scan(cell, x, (state,), weights={}, chunk=2)
    y[-1].sum().backward()
    assert state.grad is not None
    assert torch.equal(state.grad, torch.full((2, 4), 0.5**6))
    assert x.grad is not None
    assert not x.grad.any()


def test_a_cell_without_weights_runs_in_its_inputs_dtype() -> None:
    cell = own("bare", ("h",), rt.Stage(2, sigmoid_halves, (rt.Coupling("h", lambda step, z, g: (z, (1 - z) * g)),)))
    for dtype in (torch.float32, torch.float64):
        y, (h,) = rt.scan(cell, torch.randn(6, 2, 8, dtype=dtype), weights={}, hidden=4)
        assert {y.dtype, h.dtype} == {dtype}


# Mistakes in one's own


def reads_itself() -> rt.Cell:
    def gates(step: rt.Step) -> tuple[Tensor, ...]:
        return rt.forget_gate(torch.sigmoid(step.x + step.part("h")), None), step.x

    return own("selfish", ("h",), rt.Stage(1, gates, (rt.Coupling("h", lambda step, z, u: (z, u)),)))


def updates_from_itself() -> rt.Cell:
    def update(step: rt.Step) -> tuple[None, Tensor]:
        return None, step.part("h") + step.x

    return own("selfish", ("h",), rt.Stage(1, lambda step: (), (rt.Coupling("h", update),)))


@pytest.mark.parametrize("make", [reads_itself, updates_from_itself])
@pytest.mark.parametrize("way", ["train", "infer", "record"])
def test_cells_that_read_what_they_change_are_refused(make: Callable[[], rt.Cell], way: str) -> None:
    x = torch.randn(6, 2, 4)
    with pytest.raises(ValueError, match="must not read.* '?h'?"):
        if way == "train":
            rt.scan(make(), x.requires_grad_(), weights={}, chunk=2)
        elif way == "infer":
            rt.scan(make(), x, weights={})
        else:
            rt.record(make(), x, weights={}, chunk=2)


@pytest.mark.parametrize("way", ["train", "infer", "record"])
@pytest.mark.parametrize("chunk", [2, None])
def test_a_coupling_that_reads_its_own_part_after_another_has_read_it_is_refused(chunk: int | None, way: str) -> None:
    def first(step: rt.Step, g: Tensor) -> tuple[None, Tensor]:
        return None, torch.tanh(step.part("b")) * g

    def second(step: rt.Step, g: Tensor) -> tuple[None, Tensor]:
        return None, torch.tanh(step.part("b")) + g

    stage = rt.Stage(1, lambda step: (step.x,), (rt.Coupling("a", first), rt.Coupling("b", second)))
    cell, x, state = own("selfish", ("a", "b"), stage), torch.randn(6, 2, 4), (torch.randn(2, 8),)
    with pytest.raises(ValueError, match="must not read.* '?b'?"):
        if way == "record":
            rt.record(cell, x, state, weights={}, chunk=chunk)
        else:
            with torch.set_grad_enabled(way == "train"):
                rt.scan(cell, x.requires_grad_(way == "train"), state, weights={}, chunk=chunk)


@pytest.mark.parametrize("gate", [None, 0.3, 2.0, -0.5, 0.0])
@pytest.mark.parametrize("chunk", [2, 6])
def test_a_gate_not_made_by_forget_gate_is_refused(gate: float | None, chunk: int) -> None:
    def update(step: rt.Step) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(step.x) if gate is None else torch.full_like(step.x, gate), step.x

    cell = own("rough", ("h",), rt.Stage(1, lambda step: (), (rt.Coupling("h", update),)))
    x = torch.randn(6, 2, 4)
    with pytest.raises(ValueError, match="rough.*forget_gate"):
        rt.record(cell, x, weights={}, chunk=chunk)
    with pytest.raises(ValueError, match="rough.*forget_gate"):
        rt.scan(cell, x.requires_grad_(), weights={}, chunk=chunk)


WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a column": (lambda value: value[:, :1], r"\(2, 1\)"),
    "a row": (lambda value: value[:1], r"\(1, 4\)"),
    "no batch": (lambda value: value[0], r"\(4,\)"),
    "one number": (lambda value: value[0, 0], r"\(\)"),
    "twice as wide": (lambda value: torch.cat([value, value], -1), r"\(2, 8\)"),
    "no tensor": (lambda value: 0.5, "float"),
}


@pytest.mark.parametrize("which", ["z", "u"])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("way", ["train", "train, one chunk", "infer", "record"])
@pytest.mark.covering(1)
def test_an_update_of_another_shape_is_named(way: str, wrong: str, which: str) -> None:
    """Laid over the part it would be silently wrong, or leave words that no step takes back."""
    change, got = WRONG[wrong]

    def update(step: rt.Step) -> tuple[Tensor, Tensor]:
        z, u = torch.full_like(step.x, 0.5), torch.tanh(step.x)
        return (change(z), u) if which == "z" else (z, change(u))

    cell = own("laid", ("h",), rt.Stage(1, lambda step: (), (rt.Coupling("h", update),)))
    x, run = torch.randn(6, 2, 4, requires_grad=way[:5] == "train"), rt.record if way == "record" else rt.scan
    told = f"z {got} and u" if which == "z" else f"u {got}$"
    with pytest.raises(ValueError, match=rf"laid: the update of part 'h' must give .* of shape \(2, 4\), got .*{told}"):
        run(cell, x, weights={}, chunk=6 if "one" in way else 2)


def test_cells_that_make_no_sense_are_refused() -> None:
    still = rt.Coupling("h", lambda step: (None, step.x))
    with pytest.raises(ValueError, match="unknown.*'g'|'g'.*part"):
        own("unknown", ("h",), rt.Stage(1, lambda step: (), (rt.Coupling("g", still.update),)))
    with pytest.raises(ValueError, match="twice.*'h'|'h'.*twice"):
        own("twice", ("h",), rt.Stage(1, lambda step: (), (still, still)))
    with pytest.raises(ValueError, match="'h'"):
        own("doubled", ("h", "h"), rt.Stage(1, lambda step: (), (still,)))


@pytest.mark.parametrize("way", ["train", "infer", "record"])
def test_a_state_that_explodes_is_named(way: str) -> None:
    def update(step: rt.Step) -> tuple[None, Tensor]:
        return None, step.x * 2.0**17

    cell = own("explosive", ("h",), rt.Stage(1, lambda step: (), (rt.Coupling("h", update),)))
    x = torch.zeros(30, 3, 4)
    x[4:, 1, 2] = 1.0
    x[20:, 1, 2] = -1.0
    with pytest.raises(rt.StateRangeError, match=r"explosive: state h, unit 2, batch row 1, step 11 is.*\|h\| < 2\^20"):
        if way == "record":
            rt.record(cell, x, weights={}, chunk=30)
        else:
            rt.scan(cell, x.requires_grad_(way == "train"), weights={}, chunk=30 if way == "infer" else 12)


def test_a_state_that_explodes_and_returns_is_found_in_the_last_chunk_too() -> None:
    """The last chunk of a training pass is not rewound, but its arithmetic was not exact."""

    def update(step: rt.Step) -> tuple[None, Tensor]:
        return None, step.x * 2.0**19

    cell = own("explosive", ("h",), rt.Stage(1, lambda step: (), (rt.Coupling("h", update),)))
    x = torch.zeros(8, 1, 1)
    x[:4], x[4:] = 1.0, -1.0
    with pytest.raises(rt.StateRangeError, match="explosive: state h, unit 0, batch row 0, step 1"):
        rt.scan(cell, x.requires_grad_(), weights={})


# Numbers that are none


@pytest.mark.parametrize("bad", BAD)
@every_cell
def test_inputs_that_are_not_finite_are_named(kind: str, bad: float) -> None:
    of = problem(kind, 12)
    of.x[7, 2, 3] = bad
    for wanted in (False, True):
        with pytest.raises(rt.NonFiniteError, match=f"{of.cell.name}: input is not finite: {bad} at step 7, batch r"):
            rt.scan(of.cell, of.x.requires_grad_(wanted), weights=of.weights, chunk=5)


@on_both
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["ih", "hh", "bias"])
def test_weights_that_are_not_finite_are_named(name: str, bad: float) -> None:
    of = problem("RevLSTM", 5)
    of.weights[name][-1] = bad
    with pytest.raises(rt.NonFiniteError, match=f"RevLSTM: weight '{name}' .*{bad}"):
        run(of)


@on_both
@pytest.mark.parametrize("bad", BAD)
def test_states_that_are_not_finite_are_named(bad: float) -> None:
    of = problem("RevGRU", 5)
    of.state[0][1, 3] = bad
    with pytest.raises(rt.NonFiniteError, match="RevGRU: the first state is not finite"):
        run(of)


@on_both
def test_states_out_of_range_are_named() -> None:
    of = problem("RevGRU", 5)
    of.state[0][1, 3] = -(2.0**20)
    with pytest.raises(rt.StateRangeError, match=r"RevGRU: the first state holds 1.04858e\+06, outside .*2\^20"):
        run(of)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("gate", [0, 1])
@pytest.mark.parametrize("way", ["train", "infer", "record"])
def test_gates_and_updates_that_are_not_finite_are_named(way: str, gate: int, bad: float) -> None:
    """Also an infinite forget gate, which rounding into [1/1024, 1] must not hide."""

    def gates(step: rt.Step) -> tuple[Tensor, ...]:
        values = [step.x.sigmoid(), step.x]
        values[gate] = torch.where(step.x == 9.0, bad, values[gate])
        return rt.forget_gate(values[0], 3.0), values[1]

    cell = own("broken", ("h",), rt.Stage(1, gates, (rt.Coupling("h", lambda step, z, u: (z, u)),)))
    x = torch.randn(9, 3, 4)
    x[6, 2, 1] = 9.0
    state = (torch.ones(3, 4),)
    with pytest.raises(rt.NonFiniteError, match="broken: state h, unit 1, batch row 2, step 6 .*not finite"):
        if way == "record":
            rt.record(cell, x, state, weights={}, chunk=4)
        else:
            rt.scan(cell, x.requires_grad_(way == "train"), state, weights={}, chunk=4)


@on_both
def test_responses_that_are_not_finite_are_named() -> None:
    of = problem("RevGRU", 5)
    pairs = {"hh": (torch.zeros_like(of.weights["hh"]), torch.full((3, 24), float("nan")))}
    with pytest.raises(rt.NonFiniteError, match="RevGRU: weight 'hh.s' is not finite"):
        rt.scan(of.cell, of.x, weights=of.weights, responses=pairs)


def test_a_cell_is_a_value() -> None:
    cell = rt.rev_gru()
    assert cell.parts == ("h1", "h2")
    assert cell.blocks == 6
    assert replace(cell, name="other").name == "other"
    assert rt.rev_lstm().parts == ("h1", "h2", "c1", "c2")


def test_a_parameter_caught_in_a_closure_is_refused() -> None:
    caught = torch.full((4,), 0.5, requires_grad=True)

    def gates(step: rt.Step) -> tuple[Tensor, ...]:
        z, g = step.x.chunk(2, -1)
        return rt.forget_gate(torch.sigmoid(z), None), g * caught

    def update(step: rt.Step, z: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return z, (1.0 - z) * g

    cell = rt.Cell("caught", (("h",),), (rt.Stage(2, gates, (rt.Coupling("h", update),)),))
    x = torch.randn(6, 2, 8, requires_grad=True)
    for chunk in (2, None):
        with pytest.raises(ValueError, match="not read through the step"):
            rt.scan(cell, x, weights={}, chunk=chunk)
