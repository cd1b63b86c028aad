"""The figures of `revtune bench memory` as tables, for a terminal or for a README."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from revtune.contestants import Shape

HEADINGS = ("", "MB", "nn.GRU needs", "bytes", "bits stored", "forgotten")
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


class RichTables:
    """Tables on a terminal."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """Say what is being measured while it is."""
        return self.console.status(f"measuring {what}")

    def show(self, shape: Shape, results: list[dict[str, Any]]) -> None:
        """Print the table of a shape."""
        table = Table(title=f"Memory of one training step, {shape}", title_justify="left")
        table.add_column(HEADINGS[0], no_wrap=True)
        for heading in HEADINGS[1:]:
            table.add_column(heading, justify="right")
        for row in rows(shape, results):
            table.add_row(*row, style="bold" if row[0].startswith("Rev") else None)
        self.console.print(table)

    def end(self, path: object) -> None:
        """Print what the columns are and where the figures went."""
        self.console.print(f"{NOTE}\nFigures: {path}", markup=False)


class MarkdownTables:
    """Tables for a README."""

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Say nothing."""
        yield

    def show(self, shape: Shape, results: list[dict[str, Any]]) -> None:
        """Print the table of a shape."""
        lines = [f"| {shape} |" + "|".join(f" {heading} " for heading in HEADINGS[1:]) + "|"]
        lines += ["|---|" + "---:|" * (len(HEADINGS) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in rows(shape, results)]
        print("\n".join(lines), end="\n\n", flush=True)

    def end(self, path: object) -> None:
        """Print what the columns are."""
        print(NOTE)
