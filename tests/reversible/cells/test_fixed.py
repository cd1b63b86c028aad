"""Counts of 2^-32 in float64 are exact, forget gates whole 1024ths, and neither rounds a NaN or an infinity away."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from revtune.reversible.cells import fixed

COUNT = st.integers(-(2**52) + 1, 2**52 - 1)
BAD = (float("nan"), float("inf"), float("-inf"))


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(COUNT)
def test_every_count_survives_as_a_value(count: int) -> None:
    value = fixed.from_counts(float64(count))
    assert Fraction(value.item()) == Fraction(count, 2**32)
    assert fixed.to_counts(value).item() == count


@given(st.floats(-(2.0**20), 2.0**20, width=32))
def test_a_float_becomes_the_nearest_count_ties_to_even(value: float) -> None:
    for dtype in (torch.float32, torch.float64):
        count = fixed.to_counts(torch.tensor([value], dtype=dtype))
        assert count.dtype == torch.float64
        assert int(count.item()) == round(Fraction(value) * 2**32)


def test_rounding_leaves_its_argument_alone() -> None:
    value = float64(0.3)
    fixed.to_counts(value)
    fixed.round_forget(value)
    fixed.forget_integer(value)
    assert value.item() == 0.3


@given(st.floats(0, 1, width=32), st.integers(1, 1024))
def test_a_forget_gate_is_the_nearest_whole_1024th_up_to_its_top(z: float, top: int) -> None:
    wanted = min(max(round(Fraction(z) * 1024), 1), top)
    for dtype in (torch.float32, torch.float64):
        gate = fixed.round_forget(torch.tensor([z], dtype=dtype), top)
        assert gate.dtype == dtype
        assert fixed.forget_integer(gate).item() == wanted
        assert fixed.forget_integer(gate).dtype == torch.float64
        assert not fixed.is_rough(gate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_passes_straight_through_and_changes_no_bit(dtype: torch.dtype) -> None:
    z = torch.rand(1000, dtype=dtype, requires_grad=True)
    rounded = fixed.round_forget(z)
    assert torch.equal(rounded, fixed.round_forget(z.detach()))
    weight = torch.randn(1000, dtype=dtype)
    (gradient,) = torch.autograd.grad(rounded, z, weight)
    assert torch.equal(gradient, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", BAD)
def test_not_a_number_and_infinity_stay_visible(bad: float, dtype: torch.dtype) -> None:
    value = torch.tensor([bad, 0.5], dtype=dtype)
    for rounded in (
        fixed.to_counts(value),
        fixed.from_counts(value.double(), dtype),
        fixed.round_forget(value),
        fixed.round_forget(value.clone().requires_grad_()).detach(),
    ):
        assert rounded.isfinite().tolist() == [False, True]


@pytest.mark.parametrize("gate", [0.0, 0.3, 1 / 2048, 1.0 + 1 / 1024, -0.5, float("inf")])
def test_what_is_no_rounded_gate_is_seen(gate: float) -> None:
    assert fixed.is_rough(torch.tensor([0.5, gate]))


def test_not_a_number_is_left_to_those_who_name_it() -> None:
    assert not fixed.is_rough(torch.tensor([0.5, 1.0, 1 / 1024, float("nan")]))
