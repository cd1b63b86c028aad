"""Few cases of a grid that hold every pair of its values; the rest is left to `make test-all`.

A grid is a test with three `parametrize` or more, the backend one of them, or one that is marked `covering`.
"""

from collections import Counter, defaultdict
from itertools import combinations

import pytest

Case = dict[str, tuple[int, ...]]
"""By the names that one `parametrize` sets, the identities of its values: not all of them hash."""


def leave_the_rest_to_slow(items: list[pytest.Item]) -> None:
    """Mark the cases of grids that `make test` does without as slow."""
    tests: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            tests[item.nodeid.partition("[")[0]].append(item)
    for functions in tests.values():
        cases, marker = [case_of(function) for function in functions], functions[0].get_closest_marker("covering")
        if not marker and len(cases[0]) < 3:
            continue
        chosen = covering(cases, *(marker.args if marker else ()))
        for place in set(range(len(cases))) - chosen:
            functions[place].add_marker(pytest.mark.slow)


def case_of(function: pytest.Function) -> Case:
    """What a case is made of."""
    values = dict(function.callspec.params)
    marked = [mark.args[0] for mark in function.iter_markers("parametrize")]
    grouped = [[name.strip() for name in names.split(",")] if isinstance(names, str) else names for names in marked]
    case = {", ".join(names): tuple(id(values.pop(name)) for name in names) for names in grouped}
    return case | {name: (id(value),) for name, value in values.items()}


def covering(cases: list[Case], strength: int = 2) -> set[int]:
    """Places of cases that hold all that cases hold together of any `strength` values.

    Each next one holds the most of what none before it held, then what has been held the least: values are held about
    as often as others, and the choice is the same on every machine.
    """
    held = [set(combinations(case.items(), min(strength, len(case)))) for case in cases]
    missing, chosen, used = set().union(*held), set(), Counter[tuple[str, tuple[int, ...]]]()
    while missing:
        news = [len(parts & missing) for parts in held]
        most = (place for place, new in enumerate(news) if new == max(news))
        best = min(most, key=lambda place: sum(used[value] for value in cases[place].items()))
        missing -= held[best]
        used.update(cases[best].items())
        chosen.add(best)
    return chosen
