"""The tangent of chunks, by hand and by forward differentiation, against that of the same net with stored states."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from revtune.reversible.kernel.engine import Engine
from revtune.reversible.kernel.tape import LayerTensors
from revtune.reversible.layers.layer import LayerSettings, build_tape
from tests.stored import KINDS, Pairs, Problem, problem, relative, response_pairs, stored_scan

BACKENDS = ("reference", "native")
CELLS = KINDS[:5]
STEPS = 13


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def shift_of(of: Problem) -> Tensor:
    bias = of.weights["bias"]
    return 0.3 * torch.randn(of.x.shape[1], len(bias), generator=torch.Generator().manual_seed(6)).to(bias.dtype)


def stored_tangent(of: Problem, dx: Tensor, dstate: Any, pairs: Pairs, shift: Tensor, **options: Any) -> list[Tensor]:
    """The tangents of outputs and final states by a graph: gradients are linear in cotangents."""
    x, state = of.x.clone().requires_grad_(), [s.clone().requires_grad_() for s in of.state]
    scales = {name: torch.zeros_like(s).requires_grad_() for name, (_, s) in pairs.items()}
    bias = of.weights["bias"].expand(of.x.shape[1], -1).clone().requires_grad_()
    responses = {name: (v, scales[name]) for name, (v, _) in pairs.items()}
    y, finals = stored_scan(
        of.cell, x, tuple(state), weights={**of.weights, "bias": bias}, responses=responses, **options
    )
    moved = [x, *state, *scales.values(), bias]
    along = [dx, *dstate, *[s for _, s in pairs.values()], shift]
    results = [y, *finals]
    cotangents = [torch.zeros_like(result).requires_grad_() for result in results]
    grads = torch.autograd.grad(results, moved, cotangents, create_graph=True, allow_unused=True)
    total = torch.stack(
        [(g * a.to(g)).sum().double() for g, a in zip(grads, along, strict=True) if g is not None]
    ).sum()
    return list(torch.autograd.grad(total, cotangents))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("chunk", [4, 13])
@pytest.mark.parametrize("ragged", [False, True])
def test_it_is_that_of_stored_states(kind: str, chunk: int, ragged: bool, backend: str) -> None:
    native = backend == "native"
    engine: Engine = "native" if native else ""
    of = problem(kind, STEPS, rows=2, hidden=4, inputs=3, dtype=torch.float32 if native else torch.float64)
    pairs, shift = response_pairs(of), shift_of(of)
    generator = torch.Generator().manual_seed(9)
    dx = torch.randn(of.x.shape, generator=generator).to(of.x.dtype)
    dstate = [torch.randn(s.shape, generator=generator).to(of.x.dtype) for s in of.state]
    lengths = torch.tensor([13, 6]) if ragged else None
    masks = {part: torch.tensor([[0.0, 2.0], [2.0, 2.0]]).to(of.x.dtype) for part in of.cell.states[0]}
    settings = LayerSettings("layer", engine, masks, lengths, answering=False)
    tape = build_tape(of.cell, LayerTensors(of.state, of.weights, pairs), settings, STEPS, of.x.dtype)
    moved = dict(
        zip(of.cell.parts, torch.cat([s.chunk(2, -1)[i] for s in dstate for i in (0, 1)]).split(2), strict=True)
    )
    pieces = []
    with torch.no_grad():
        for first in range(0, STEPS, chunk):
            part = of.x[first : first + chunk]
            tape.record(part, first)
            dy, moved = tape.tangent(part, first, dx[first : first + chunk], shift, moved)
            pieces.append(dy)
            tape.restart(tape.taken_final())
    wanted, *finals = stored_tangent(of, dx, dstate, pairs, shift, lengths=lengths, masks=masks)
    live = torch.ones(STEPS, 2, dtype=torch.bool) if lengths is None else torch.arange(STEPS)[:, None] < lengths
    close = 1e-5 if native else 1e-12
    assert relative(torch.cat(pieces)[live], wanted[live]) < close
    for group, final in zip(of.cell.states, finals, strict=True):
        assert relative(torch.cat([moved[part] for part in group], -1), final) < close


def test_a_level_of_forward_differentiation_may_be_open() -> None:
    of = problem("RevGRU", 5, dtype=torch.float64)
    tape = build_tape(of.cell, LayerTensors(of.state, of.weights, {}), LayerSettings("layer"), 5, of.x.dtype)
    with torch.no_grad():
        tape.record(of.x, 0)
        plain, _ = tape.tangent(of.x, 0, torch.ones_like(of.x), None, {})
        with forward_ad.dual_level():
            nested, _ = tape.tangent(of.x, 0, torch.ones_like(of.x), None, {})
    assert torch.equal(plain, nested) and plain.any()


@pytest.mark.parametrize("kind", CELLS)
def test_a_tangent_changes_no_gradient(kind: str, backend: str) -> None:
    """Responses learn from what the tangent has noted of their products as from what the way back computes."""
    native = backend == "native"
    engine: Engine = "native" if native else ""
    of = problem(kind, 9, rows=2, hidden=6, inputs=3, dtype=torch.float32 if native else torch.float64)
    tensors = {f"{name}.{kind}": tensor.requires_grad_() for name, pair in response_pairs(of).items()
               for kind, tensor in zip("Vs", pair, strict=True)}  # fmt: skip
    pairs = {name: (tensors[f"{name}.V"], tensors[f"{name}.s"]) for name in ("ih", "hh")}
    found = []
    for moving in (False, True):
        tape = build_tape(of.cell, LayerTensors(of.state, of.weights, pairs),
                          LayerSettings("layer", engine, answering=False), 9, of.x.dtype)  # fmt: skip
        with torch.no_grad():
            y = tape.record(of.x, 0)
            if moving:
                tape.tangent(of.x, 0, torch.ones_like(of.x), shift_of(of), {})
            dx = tape.gradient(of.x, y)
        assert dx is not None and tape.weights.gradients.keys() == tensors.keys()
        found.append({"x": dx, **tape.weights.gradients})
    assert all(torch.equal(grad, found[1][name]) for name, grad in found[0].items())
    assert all(grad.any() for grad in found[0].values())


@pytest.mark.parametrize("kind", CELLS)
def test_a_row_moves_as_it_does_alone_on_any_threads(kind: str, threads: None) -> None:
    of = problem(kind, 7, rows=14, hidden=66, inputs=70, spread=0.3)
    pairs, shift, dx, found = response_pairs(of), shift_of(of), torch.ones_like(of.x), []
    for number, rows in ((1, slice(None)), (3, slice(None)), (1, slice(5, 6))):
        torch.set_num_threads(number)
        responses = {name: (v, s[rows]) for name, (v, s) in pairs.items()}
        inputs = LayerTensors(tuple(state[rows] for state in of.state), of.weights, responses)
        tape = build_tape(of.cell, inputs, LayerSettings("layer", "native", answering=False), 7, of.x.dtype)
        with torch.no_grad():
            tape.record(of.x[:, rows], 0)
            found.append(tape.tangent(of.x[:, rows], 0, dx[:, rows], shift[rows], {})[0])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0][:, 5:6], found[2])
