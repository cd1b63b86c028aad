"""A step in plain torch beside the plain-torch layer: the same states, and autograd's gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

import revtune as rt
from revtune.errors import NonFiniteError, StateRangeError
from revtune.reversible.cells.plain_step import plain_step
from tests.stored import KINDS, differentiate, problem, random_loss

every = pytest.mark.parametrize("kind", KINDS)


def unrolled(of: Any, x: Tensor, state: tuple[Tensor, ...], weights: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    outputs = []
    for part in x:
        state = plain_step(of.cell, part, state, weights, "mine")
        outputs.append(state[0].to(x.dtype))
    return torch.stack(outputs), state


@every
def test_states_are_those_of_the_plain_layer(kind: str) -> None:
    of = problem(kind, 8, dtype=torch.float64)
    with torch.no_grad():
        y, finals = rt.scan(of.cell, of.x, of.state, weights=of.weights, backend="reference")
        found, last = unrolled(of, of.x, of.state, of.weights)
    assert float((found - y).abs().max()) <= 8 * 2.0**-32  # products of other shapes may round to another count
    assert all(float((one - other).abs().max()) <= 8 * 2.0**-32 for one, other in zip(last, finals, strict=True))
    assert all(torch.equal(one * 2.0**32, (one * 2.0**32).round()) for one in last)


@every
def test_gradients_are_those_of_the_rewound_layer(kind: str) -> None:
    of = problem(kind, 6, dtype=torch.float64)
    wanted = differentiate(rt.scan, of, backend="reference")
    x, state = of.x.clone().requires_grad_(), tuple(part.clone().requires_grad_() for part in of.state)
    weights = {name: weight.clone().requires_grad_() for name, weight in of.weights.items()}
    loss = random_loss(*unrolled(of, x, state, weights))
    grads = torch.autograd.grad(loss, [x, *weights.values()])
    # What the layer's buffer steers is 2^-22 of a state at each step
    for name, grad in zip(("x", *weights), grads, strict=True):
        assert float((grad - wanted.grads[name]).abs().max()) <= 6 * 2.0**-20 * float(grad.abs().max()), name


def test_what_is_out_of_order_is_named() -> None:
    of = problem("RevLSTM", 1)
    with pytest.raises(NonFiniteError, match="mine: input is not finite: nan at index"):
        plain_step(of.cell, of.x[0] * torch.nan, of.state, of.weights, "mine")
    with pytest.raises(StateRangeError, match="mine: the first state holds 2.09715e"):
        plain_step(of.cell, of.x[0], tuple(state * 0 + 2.0**21 for state in of.state), of.weights, "mine")
    weights = {**of.weights, "hh": of.weights["hh"].clone()}
    weights["hh"][3, 1] = torch.inf
    with pytest.raises(NonFiniteError, match=r"mine: weight 'hh' is not finite: inf at index \(3, 1\)"):
        plain_step(of.cell, of.x[0], tuple(torch.zeros_like(state) for state in of.state), weights, "mine")


def test_a_sum_that_overflows_is_no_error() -> None:
    """Its gate is at its limit, as in a layer."""
    of = problem("RevGRU", 1)
    # of one sign, since the sum of both infinities is no number
    weights = {**of.weights, "ih": of.weights["ih"].abs() * 1e38}
    after = plain_step(of.cell, of.x[0].abs() * 1e3, of.state, weights, "mine")
    assert bool(after[0].isfinite().all())


def test_a_state_that_leaves_the_range_is_named() -> None:
    of = problem("NF-RevGRU", 1)
    state = (torch.full_like(of.state[0], 2.0**20 - 2.0**-3),)
    with pytest.raises(StateRangeError, match="mine: state h., unit"):
        for _ in range(50):
            state = plain_step(of.cell, of.x[0] * 100, state, of.weights, "mine")  # type: ignore[assignment]
