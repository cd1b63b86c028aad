"""Kinds of hyperparameters: what l means, where they may start, what is refused."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from revtune.tuning.hypers.kinds import Between, Hyper, Integer, Positive, Rate

ANY: Any = {"word": "x", "half": 0.5, "row": "row"}
KINDS = [Rate(0.3), Between(0.2, -1.0, 0.5), Positive(1e-4), Positive(30.0), Integer(1, 0, 4), Integer(24, 0, 24)]


@pytest.mark.parametrize("spec", KINDS, ids=repr)
def test_the_initial_value_is_the_value_of_its_own_l(spec: Hyper) -> None:
    value = spec.value(torch.tensor(spec.raw(), dtype=torch.float64))
    assert math.isclose(value.item(), spec.initial, rel_tol=1e-9)


@given(st.floats(-50, 50))
def test_values_stay_in_their_ranges_wherever_l_goes(raw: float) -> None:
    at = torch.tensor(raw)
    assert 0 <= Rate(0.5).value(at) <= 1
    assert -1 <= Between(0.0, -1.0, 2.0).value(at) <= 2
    assert Positive(1.0).value(at) >= 0
    assert Integer(2, 0, 4).value(at).item() in range(5)


def test_an_integer_starts_in_the_middle_of_its_bin_and_changes_at_its_bounds() -> None:
    spec = Integer(1, 0, 4)
    share = torch.tensor([0.199, 0.201, 0.3, 0.399, 0.401], dtype=torch.float64)
    assert spec.value(torch.logit(share)).tolist() == [0, 1, 1, 1, 2]
    assert torch.sigmoid(torch.tensor(spec.raw())).item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Rate(0.0), "strictly between 0 and 1, got 0.0"), (lambda: Rate(1), "strictly between 0 and 1, got 1"),
        (lambda: Rate(float("nan")), "must be a finite number, got nan"),
        (lambda: Rate(ANY["word"]), "must be a finite number, got 'x'"),
        (lambda: Positive(0), "must be positive, got 0"), (lambda: Between(1, 2, 0), "low=2, high=0"),
        (lambda: Between(0, 0, 1), "strictly between 0 and 1, got 0"), (lambda: Integer(5, 0, 4), "from 0 to 4, got 5"),
        (lambda: Integer(1, ANY["half"], 4), "low must be an integer, got 0.5"),
        (lambda: Integer(1, 3, 3), "low=3, high=3"),
        (lambda: Rate(0.1, per=ANY["row"]), 'must be "example" or "batch", got \'row\''),
        (lambda: Rate(0.1, scale=0), "scale must be a positive number, got 0"),
        (lambda: Rate(0.1, scale=3.0), "scale must be at most max_scale 1.0, got 3.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_value(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(ValueError) as refused:
        make()
    assert told in str(refused.value)


def test_a_fixed_scale_may_be_any() -> None:
    assert Rate(0.1, scale=3.0, tune_scale=False).scale == 3.0


@pytest.mark.parametrize("high", [float("inf"), None, "4", True])
def test_bounds_that_are_no_integers_are_named(high: Any) -> None:
    with pytest.raises(ValueError, match="Integer: high must be an integer, got"):
        Integer(1, 0, high)


def test_booleans_are_no_values() -> None:
    with pytest.raises(ValueError, match="Positive: the initial value must be a finite number, got True"):
        Positive(True)


class Strength(Positive):
    """A kind of a user's own."""


OwnRate = type("Rate", (Rate,), {})


def test_a_kind_of_ones_own_is_told_and_found_by_its_name() -> None:
    for hyper in (Strength(0.1), OwnRate(0.2), Rate(0.2)):
        found = Hyper.from_plain(hyper.to_plain())
        assert found == hyper and type(found) is type(hyper)
    with pytest.raises(ValueError, match="there is no kind of hyperparameter 'Force'; there are .*Rate"):
        Hyper.from_plain({**Rate(0.1).to_plain(), "kind": "Force"})
