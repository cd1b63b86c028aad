"""The figures of `revtune bench memory` as tables, for a terminal or for a README."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from revtune.contestants import Shape
from revtune.page import Page

HEADINGS = ("MB", "nn.GRU needs", "bytes", "bits stored", "forgotten")
NOTE = (
    "MB above the parameters and their gradients. Bytes: the same a unit and step. Bits: what the information buffer "
    "stores a unit and step, beside what the gates forgot; in a RevLSTM h and c are both units."
)


def rows(shape: Shape, results: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """The cells of the table, a row for each contestant."""
    plain = next((one["bytes"] for one in results if one["name"] == "nn.GRU" and "bytes" in one), None)
    places = shape.steps * shape.batch * shape.hidden
    for one in results:
        if "error" in one:
            yield one["name"], one["error"], "", "", "", ""
            continue
        needed, bits = max(1, one["bytes"]), one["bits_per_unit_step"]
        ratio = "" if plain is None else f"{plain / needed:.1f}x"
        stored = (f"{bits['stored']:.2f}", f"{bits['ideal']:.2f}") if bits else ("", "")
        name = one["name"] + (" (estimate)" if one.get("estimate") else "")
        yield name, f"{needed / 1e6:,.1f}", ratio, f"{needed / places:.2f}", *stored


def show(page: Page, shape: Shape, results: list[dict[str, Any]]) -> None:
    """The table of a shape."""
    page.table("Memory of one training step", str(shape), HEADINGS, rows(shape, results))
