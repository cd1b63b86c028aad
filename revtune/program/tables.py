"""Tables of markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is to the left and all others to the right; no line break at its end.

    Example:
        >>> print(markdown(("net", "loss"), [("GRU", "1.25")]))
        | net | loss |
        |---|---:|
        | GRU | 1.25 |
    """
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
