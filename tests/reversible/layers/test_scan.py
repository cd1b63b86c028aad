"""Gradients of rewinding are those of the same rounded forward with stored states, and nearly those of a float net.

The reference's outputs are those of stored states bit for bit. The kernel sums its products in another order; now and
then a gate then rounds to the next 1024th, which moves what follows by 1e-4 or so. Cases are small and their seeds are
such that it does not happen.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import revtune as rt
from revtune.reversible.cells import fixed
from revtune.reversible.kernel import sequence_recall as recall
from tests.backends import in_kernel, on_reference
from tests.stored import (
    KINDS,
    Leaves,
    Problem,
    Result,
    State,
    differentiate,
    float_scan,
    problem,
    relative,
    response_pairs,
    stored_scan,
)

FLOAT32 = 1e-5
BACKENDS = ("reference", "native")
CELLS = KINDS[:4]
RUNS = [(kind, "reference") for kind in KINDS] + [(kind, "native") for kind in CELLS]
every_cell = pytest.mark.parametrize(("kind", "backend"), RUNS, indirect=["backend"])
cells = pytest.mark.parametrize(("kind", "backend"), [run for run in RUNS if run[0] in CELLS], indirect=["backend"])


@pytest.fixture(autouse=True)
def _gates_are_evaluated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the kernel's way back, which keeps them where they are few."""
    monkeypatch.setattr(recall, "KEPT", 0)


def equal(given: Result, wanted: Result, tolerance: float, *, exact: bool) -> None:
    """The same outputs and states, bit for bit if `exact`, the same gradients up to rounding, none of them zero."""
    for value, expected in zip((given.y, *given.finals), (wanted.y, *wanted.finals), strict=True):
        assert torch.equal(value, expected) if exact else relative(value, expected) < tolerance
    assert given.grads.keys() == wanted.grads.keys()
    for name, grad in wanted.grads.items():
        assert grad.abs().max() > 0, name
        assert relative(given.grads[name], grad) < tolerance, name


def agree(of: Problem, tolerance: float = FLOAT32, **options: Any) -> None:
    given, wanted = (differentiate(run, of, **options) for run in (rt.scan, stored_scan))
    equal(given, wanted, tolerance, exact=not in_kernel(of))


@pytest.mark.parametrize("chunk", [1, 7, 10, 30, 31, None])
@every_cell
def test_gradients_are_those_of_stored_states(kind: str, chunk: int | None) -> None:
    agree(problem(kind, 30), chunk=chunk)


@pytest.mark.parametrize("bits", [1.0, 2.5, 5.0, None])
@pytest.mark.parametrize(("kind", "backend"), [run for run in RUNS if run[0][:2] != "NF"], indirect=["backend"])
def test_gradients_under_every_limit(kind: str, bits: float | None) -> None:
    """From a seed at which the kernel, summing in another order, rounds no gate to another 1024th."""
    agree(problem(kind, 25, bits=bits, spread=1.0, seed=3), chunk=9)


@pytest.mark.parametrize("chunk", [4, 10, 20])
@every_cell
def test_gradients_of_ragged_rows_and_masked_parts(kind: str, chunk: int) -> None:
    of = problem(kind, 20, rows=4)
    masks = {}
    for part in of.cell.states[0]:
        units = 8 // len(of.cell.states[0])
        masks[part] = torch.bernoulli(torch.full((4, units), 0.5), generator=torch.Generator().manual_seed(3)) * 2
    agree(of, chunk=chunk, lengths=torch.tensor([20, 1, 13, 8]), masks=masks)


@pytest.mark.parametrize("names", [("hh",), ("ih",), ("hh", "ih")])
@cells
def test_gradients_of_response_pairs(kind: str, names: tuple[str, ...]) -> None:
    of = problem(kind, 15)
    agree(of, chunk=4, lengths=torch.tensor([15, 3, 9]), responses=response_pairs(of, names=names))


def bias_by_row(of: Problem) -> Problem:
    """The problem with a bias of each row's own."""
    noise = torch.randn(of.x.shape[1], len(of.weights["bias"]), generator=torch.Generator().manual_seed(4))
    bias = of.weights["bias"] + 0.3 * noise.to(of.x.dtype)
    return of._replace(weights={**of.weights, "bias": bias})


@pytest.mark.parametrize("chunk", [1, 4, None])
@every_cell
def test_gradients_of_a_bias_of_each_row(kind: str, chunk: int | None) -> None:
    of = bias_by_row(problem(kind, 15))
    agree(of, chunk=chunk, lengths=torch.tensor([15, 3, 9]), responses=response_pairs(of) if kind in CELLS else None)


@every_cell
def test_a_bias_of_each_row_infers_rewinds_and_is_the_shared_one_where_rows_are_alike(kind: str) -> None:
    of = problem(kind, 25)
    alike = {**of.weights, "bias": of.weights["bias"].expand(of.x.shape[1], -1)}
    shared, _ = rt.scan(of.cell, of.x, of.state, weights=of.weights)
    torch.testing.assert_close(rt.scan(of.cell, of.x, of.state, weights=alike)[0], shared, atol=2e-3, rtol=0.0)
    own = bias_by_row(of)
    y, _ = rt.scan(own.cell, own.x, own.state, weights=own.weights)
    recording = rt.record(own.cell, own.x, own.state, weights=own.weights, chunk=4)
    torch.testing.assert_close(recording.y, y, atol=2e-3, rtol=0.0)
    again, first = rt.unscan(recording)
    assert torch.equal(again, recording.y)
    assert all(torch.equal(a, fixed.from_counts(fixed.to_counts(b))) for a, b in zip(first, own.state, strict=True))


@cells
def test_a_response_of_zero_is_no_response(kind: str) -> None:
    of = problem(kind, 12)
    pairs = {name: (extra, torch.zeros_like(scale)) for name, (extra, scale) in response_pairs(of).items()}
    plain, zero = differentiate(rt.scan, of, chunk=5), differentiate(rt.scan, of, chunk=5, responses=pairs)
    assert torch.equal(plain.y, zero.y)
    for name, grad in plain.grads.items():
        assert relative(zero.grads[name], grad) < 1e-6, name
    for name in pairs:
        assert not zero.grads[f"{name}.V"].any()
        assert zero.grads[f"{name}.s"].any()


def test_a_response_changes_each_row_by_its_own_scale() -> None:
    of = problem("RevGRU", 10)
    pairs = response_pairs(of)
    y, _ = rt.scan(of.cell, of.x, of.state, weights=of.weights, responses=pairs)
    for row in range(of.x.shape[1]):
        weights = dict(of.weights)
        for name, (extra, scale) in pairs.items():
            weights[name] = of.weights[name] + scale[row].unsqueeze(1) * extra
        alone, _ = rt.scan(of.cell, of.x[:, row : row + 1], tuple(s[row : row + 1] for s in of.state), weights=weights)
        torch.testing.assert_close(y[:, row], alone[:, 0], atol=2e-3, rtol=0.0)


@on_reference
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_float64(kind: str) -> None:
    of = problem(kind, 20, dtype=torch.float64)
    agree(of, 1e-12, chunk=6, responses=response_pairs(of) if kind in CELLS else None)


@every_cell
def test_gradients_without_bias_or_input_weights(kind: str) -> None:
    of = problem(kind, 12)
    agree(of._replace(weights={name: w for name, w in of.weights.items() if name != "bias"}), chunk=5)
    raw = torch.randn(12, 3, of.weights["ih"].shape[0], generator=torch.Generator().manual_seed(4))
    rest = {name: w for name, w in of.weights.items() if name == "hh"}
    if rest:
        agree(of._replace(x=raw, weights=rest), chunk=5)


def test_a_float32_first_state_gives_a_float32_last_state() -> None:
    of = problem("RevLSTM", 10)
    state = tuple(tensor.float() for tensor in of.state)
    agree(of._replace(state=state), chunk=4)
    _, finals = rt.scan(of.cell, of.x, state, weights=of.weights)
    assert {final.dtype for final in finals} == {torch.float32}


def test_only_what_is_wanted_gets_a_gradient() -> None:
    of = problem("RevGRU", 10)
    wanted = differentiate(rt.scan, of, chunk=3).grads
    for name in wanted:
        leaves = Leaves(of)
        for other, tensor in leaves.named().items():
            tensor.requires_grad_(other == name)
        y, finals = rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, chunk=3)
        (y.sum() + finals[0].sum()).backward()
        assert [other for other, tensor in leaves.named().items() if tensor.grad is not None] == [name]


def test_outputs_or_last_state_may_stay_unused() -> None:
    of = problem("RevLSTM", 14)
    for pick in (lambda y, finals: y[3].sum(), lambda y, finals: finals[1].sum(), lambda y, finals: finals[0][0, 0]):
        found = []
        for run in (rt.scan, stored_scan):
            leaves = Leaves(of)
            found.append(leaves.gradients(pick(*run(of.cell, leaves.x, leaves.state, weights=leaves.weights, chunk=4))))
        for name, grad in found[1].items():
            assert relative(found[0][name], grad) < FLOAT32, name


def float_loss(kind: str, bits: float | None, named: dict[str, Tensor], target: Tensor) -> Tensor:
    state = tuple(tensor for name, tensor in named.items() if name.startswith("state."))
    weights = {name: tensor for name, tensor in named.items() if name in ("ih", "hh", "bias")}
    return error(*float_scan(kind, bits, named["x"], state, weights), target)


def error(y: Tensor, finals: State, target: Tensor) -> Tensor:
    """A mean squared error of the outputs, and of the last state from zero."""
    return (y - target).square().mean() + 0.1 * finals[-1].square().mean().to(y.dtype)


@pytest.mark.parametrize("bits", [3.0, None])
@every_cell
def test_loss_and_gradients_are_nearly_those_of_a_float_net(
    kind: str, bits: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    of = problem(kind, 40, bits=bits, rows=8, hidden=16, spread=0.25)
    target = torch.randn(40, 8, 16, generator=torch.Generator().manual_seed(5))
    leaves = Leaves(of)
    loss = error(*rt.scan(of.cell, leaves.x, leaves.state, weights=leaves.weights, chunk=12), target)
    grads = leaves.gradients(loss)
    named = {name: tensor.detach().double() for name, tensor in leaves.named().items()}
    smooth = float_loss(kind, bits, named, target.double())
    off = abs(loss.item() - smooth.item()) / smooth.item()
    assert off < 1e-3
    worst = 0.0
    for name, grad in grads.items():
        noise = torch.randn(grad.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        direction = noise / noise.norm() + grad.double() / grad.double().norm()
        ahead, behind = (
            float_loss(kind, bits, {**named, name: named[name] + step * direction}, target.double())
            for step in (1e-5, -1e-5)
        )
        slope = float(ahead - behind) / 2e-5
        worst = max(worst, abs(float((grad.double() * direction).sum()) / slope - 1))
    with capsys.disabled():
        print(f"\n{kind}, limit {bits}: off the float net's by {off:.1e} (loss), {worst:.1e} (derivatives)", end="")
    assert worst < 0.01


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "no chunk": ({"chunk": 0}, "chunk must be a positive number of steps, got 0"),
    "negative chunk": ({"chunk": -1}, "chunk must be a positive number of steps, got -1"),
    "odd share": ({"share": 3}, "share must be a positive multiple of the cell's 2 parts, got 3"),
    "short length": ({"lengths": torch.tensor([3, 9, 0])}, "lengths must lie in 1..9.*got 0 in row 2"),
    "long length": ({"lengths": torch.tensor([3, 10, 1])}, "lengths must lie in 1..9.*got 10 in row 1"),
    "lengths of other rows": ({"lengths": torch.tensor([3, 9])}, "lengths must be 3 integers"),
    "float lengths": ({"lengths": torch.tensor([3.0, 9.0, 2.0])}, "lengths must be 3 integers.*float32"),
    "state of one row": ({"state": (torch.zeros(1, 8),)}, r"state.*\(3, 8\).*\(1, 8\)"),
    "state of other rows": ({"state": (torch.zeros(2, 8),)}, r"state.*\(3, 8\).*\(2, 8\)"),
    "odd state": ({"state": (torch.zeros(3, 7),)}, r"state.*7"),
    "whole state": ({"state": (torch.zeros(3, 8, dtype=torch.int64),)}, "state.*int64"),
    "two states": ({"state": (torch.zeros(3, 8), torch.zeros(3, 8))}, "state must be 1 tensors.*got 2"),
    "narrow input": ({"x": torch.zeros(9, 3, 4)}, "x.*5.*4"),
    "float64 input": ({"x": torch.zeros(9, 3, 5, dtype=torch.float64)}, "x.*float32.*float64"),
    "no steps": ({"x": torch.zeros(0, 3, 5)}, "T >= 1"),
    "unbatched input": ({"x": torch.zeros(9, 5)}, r"x must be \(T, B, I\)"),
    "narrow hh": ({"weights": {"hh": torch.zeros(24, 3)}}, r"hh.*\(24, 4\).*\(24, 3\)"),
    "long hh": ({"weights": {"hh": torch.zeros(30, 4)}}, r"hh.*\(24, 4\).*\(30, 4\)"),
    "flat hh": ({"weights": {"hh": torch.zeros(24)}}, r"hh.*\(24, 4\).*\(24,\)"),
    "deep hh": ({"weights": {"hh": torch.zeros(24, 4, 1)}}, r"hh.*\(24, 4\).*\(24, 4, 1\)"),
    "no hh": ({"weights": {"hh": None}}, "hh"),
    "unknown weight": (
        {"weights": {"bias_ih": torch.zeros(24)}},
        r"RevGRU: weights must be among \('ih', 'bias', 'hh'\) for this cell, got 'bias_ih'",
    ),
    "odd ih": ({"weights": {"ih": torch.zeros(25, 5)}}, "ih.*25"),
    "bias without ih": ({"x": torch.zeros(9, 3, 24), "weights": {"ih": None}}, "bias.*needs weight 'ih'"),
    "half weights": ({"weights": {"ih": torch.zeros(24, 5).half(), "hh": torch.zeros(24, 4).half()}}, "float16"),
    "unknown response": ({"responses": {"hx": (torch.zeros(24, 4), torch.zeros(3, 24))}}, "hx"),
    "response of one row": (
        {"responses": {"hh": (torch.zeros(24, 4), torch.zeros(1, 24))}},
        r"hh.*\(3, 24\).*\(1, 24\)",
    ),
    "response on bias": ({"responses": {"bias": (torch.zeros(24), torch.zeros(3, 24))}}, "takes no pair"),
    "float64 V": (
        {"responses": {"hh": (torch.zeros(24, 4).double(), torch.zeros(3, 24))}},
        "V of the response of 'hh'.*float32.*float64",
    ),
    "whole s": (
        {"responses": {"ih": (torch.zeros(24, 5), torch.zeros(3, 24).long())}},
        "s of the response of 'ih'.*float32.*int64",
    ),
    "s elsewhere": (
        {"responses": {"hh": (torch.zeros(24, 4), torch.zeros(3, 24, device="meta"))}},
        "s of the response of 'hh'.*cpu.*meta",
    ),
    "response that is no pair": ({"responses": {"hh": torch.zeros(2, 3)}}, r"pair \(V, s\), got Tensor"),
    "response of numbers": ({"responses": {"hh": ([1.0], [2.0])}}, "V of the response of 'hh'.*tensor.*list"),
    "weights in a list": ({"weights": [torch.zeros(24, 4)]}, "weights must be a dict by name, got list"),
    "weight that is none": ({"weights": {"hh": 1.0}}, "weight 'hh' must be a tensor, got float"),
    "input that is none": ({"x": [[[0.0]]]}, "x must be a tensor, got list"),
    "sparse input": ({"x": torch.zeros(9, 3, 5).to_sparse()}, "x must be a dense tensor, got torch.sparse_coo"),
    "bare state": ({"state": torch.zeros(3, 8)}, "state must be a tuple of 1 tensors.*got Tensor"),
    "state elsewhere": ({"state": (torch.zeros(3, 8, device="meta"),)}, "state is on meta, x on cpu"),
    "mask that is none": ({"masks": {"h1": 0.5}}, "mask 'h1' must be a tensor, got float"),
    "mask elsewhere": ({"masks": {"h1": torch.zeros(3, 4, device="meta")}}, "mask 'h1'.*cpu.*meta"),
    "mask that learns": (
        {"masks": {"h1": torch.zeros(3, 4, requires_grad=True)}},
        "mask 'h1' must require no gradient, as it would get none, got one that requires it",
    ),
    "float64 mask": ({"masks": {"h1": torch.zeros(3, 4).double()}}, "mask 'h1' must be torch.float32.*got .*float64"),
    "share in floats": ({"share": 2.0}, "share must be a positive multiple of the cell's 2 parts, got 2.0"),
    "share that is a switch": ({"share": True}, "share must be a positive multiple of the cell's 2 parts, got True"),
    "hidden in letters": ({"hidden": "8"}, "hidden must be a positive multiple of a state's 2 parts, got '8'"),
    "negative hidden": ({"hidden": -8}, "hidden must be a positive multiple of a state's 2 parts, got -8"),
    "odd hidden": ({"hidden": 9}, "hidden must be a positive multiple of a state's 2 parts, got 9"),
    "hidden of other states": ({"hidden": 10}, "hidden must be 8, as the state has it, got 10"),
    "hidden of another ih": ({"hidden": 10, "state": None}, "hidden must be 8, as weight 'ih' has it, got 10"),
    "hidden of another x": (
        {"hidden": 10, "state": None, "x": torch.zeros(9, 3, 24), "weights": {"ih": None, "bias": None}},
        "hidden must be 8, as x has it, got 10",
    ),
    "bare ih": ({"weights": {"ih": torch.zeros(())}}, r"weight 'ih' must be \(G, I\), got \(\)"),
    "state of no dimension": ({"state": (torch.zeros(()),)}, r"a state must be \(B, H\), got \(\)"),
    "unknown mask": ({"masks": {"h3": torch.zeros(3, 4)}}, "h3"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_arguments_that_do_not_fit(misfit: str) -> None:
    changes, sentence = MISFITS[misfit]
    of = problem("RevGRU", 9)
    weights: Any = changes.get("weights", {})
    if isinstance(weights, dict):
        weights = {name: w for name, w in {**of.weights, **weights}.items() if w is not None}
    with pytest.raises(ValueError, match=sentence):
        rt.scan(of.cell, **{"x": of.x, "state": of.state, **changes, "weights": weights})


def test_recording_refuses_a_weight_that_the_cell_does_not_know() -> None:
    of = problem("RevLSTM", 9)
    with pytest.raises(ValueError, match="RevLSTM: weights must be among .* got 'hx'"):
        rt.record(of.cell, of.x, weights={**of.weights, "hx": torch.zeros(2)})


def test_a_cell_of_ones_own_may_be_given_weights_of_any_name() -> None:
    of = problem("RevGRU", 9)
    cell = replace(of.cell, name="mine")
    y, _ = rt.scan(cell, of.x, of.state, weights={**of.weights, "unread": torch.zeros(2)})
    assert torch.equal(y, rt.scan(cell, of.x, of.state, weights=of.weights)[0])


@pytest.mark.parametrize("run", [rt.scan, rt.record])
@pytest.mark.parametrize("layer", [rt.RevGRU(5, 8), rt.RevLSTMCell(5, 8), None])
def test_a_layer_in_the_place_of_a_cell_is_named(run: Any, layer: Any) -> None:
    of, kind = problem("RevGRU", 9), type(layer).__name__
    with pytest.raises(ValueError, match=rf"^{run.__name__}: cell must be a Cell, as rev_gru\(\) gives.*got {kind}"):
        run(layer, of.x, weights=of.weights)
