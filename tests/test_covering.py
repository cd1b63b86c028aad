"""What of a grid of cases `make test` runs."""

from collections import Counter
from itertools import combinations, product

import pytest

from tests.covering import Case, case_of, covering

SIZES = {"net": 2, "method": 3, "length": 4, "backend": 2}


@pytest.fixture
def grid() -> list[Case]:
    return [dict(zip(SIZES, ((n,) for n in places), strict=True)) for places in product(*map(range, SIZES.values()))]


def test_every_pair_of_values_is_held_by_few_cases(grid: list[Case]) -> None:
    chosen = covering(grid)
    for one, other in combinations(SIZES, 2):
        held = {(grid[place][one], grid[place][other]) for place in chosen}
        assert len(held) == SIZES[one] * SIZES[other]
    assert len(chosen) < len(grid) / 3


def test_every_value_is_held_where_no_more_is_asked_for(grid: list[Case]) -> None:
    chosen = covering(grid, 1)
    assert len(chosen) == max(SIZES.values())
    for name, size in SIZES.items():
        held = Counter(grid[place][name] for place in chosen)
        assert len(held) == size and max(held.values()) - min(held.values()) <= 1


@pytest.mark.parametrize("a, b", [(1, 1), (1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("c", "xy")
@pytest.mark.parametrize("d", "vw")
def test_values_of_one_parametrize_stay_together(
    a: int, b: int, c: str, d: str, request: pytest.FixtureRequest
) -> None:
    assert case_of(request.node) == {"a, b": (id(a), id(b)), "c": (id(c),), "d": (id(d),)}


def test_what_is_left_over_is_slow(request: pytest.FixtureRequest) -> None:
    """As `make test` sees this file's own grid: half of it holds every row with each of the other values."""
    kept = [item for item in request.session.items if item.name.startswith("test_values_of_one_parametrize")]
    slow = [item for item in kept if item.get_closest_marker("slow")]
    if kept:  # with -k or a name there may be none
        assert len(kept) - len(slow) == 8
