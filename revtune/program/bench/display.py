"""Where the benchmarks show tables and sentences: a terminal, or markdown for a README."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from revtune.program.progress import Parts
from revtune.program.tables import markdown

Rows = Iterable[Sequence[str]]


class Display(Protocol):
    """What shows tables and sentences."""

    def measuring(self, count: int) -> AbstractContextManager[object]:
        """Show how many measurements of so many are done; `waiting` is one."""

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """Say what is being measured while it is."""

    def table(self, about: str, corner: str, headings: Sequence[str], rows: Rows) -> None:
        """Show a table.

        Args:
            about: what all tables of its kind have in common.
            corner: what tells it from the others.
            headings: of all columns but the first.
            rows: those that begin with a reversible layer stand out.
        """

    def say(self, text: str) -> None:
        """Show a sentence."""

    def tell(self, text: str) -> None:
        """Show a sentence that is of use to the person at the keyboard alone."""


class Counting:
    """What counts measurements.

    Args:
        parts: shows how many are done.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def measuring(self, count: int) -> AbstractContextManager[object]:
        """Show a bar on a terminal, which disappears in the end."""
        return self.parts.of(count)

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """Name it beside the bar."""
        return self.parts.part(f"measuring {what}")


class Terminal(Counting):
    """A terminal; where there is none, a line for each measurement."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        super().__init__(Parts(self.console))

    def table(self, about: str, corner: str, headings: Sequence[str], rows: Rows) -> None:
        """Show it under a title, without a frame where that does not fit."""
        table = Table(title=f"{about}, {corner}", title_justify="left")
        table.add_column("", no_wrap=True)
        for heading in headings:
            table.add_column(heading, justify="right")
        for row in rows:
            table.add_row(*row, style="bold" if row[0].startswith("Rev") else None)
        if self.console.measure(table).maximum >= self.console.width:
            table.box, table.padding, table.show_edge = SIMPLE_HEAD, 0, False
        self.console.print(table)

    def say(self, text: str) -> None:
        """Print it as it is."""
        self.console.print(text, markup=False)

    tell = say


class Markdown(Counting):
    """Tables for a README on stdout, so that a bar is on stderr."""

    def __init__(self) -> None:
        super().__init__(Parts(Console(stderr=True), lines=False))

    def table(self, about: str, corner: str, headings: Sequence[str], rows: Rows) -> None:
        """Print it with what tells it from the others in the corner."""
        print(markdown([corner, *headings], rows), end="\n\n", flush=True)

    def say(self, text: str) -> None:
        """Print it as it is."""
        print(text)

    def tell(self, text: str) -> None:
        """Say nothing; it would be part of the page."""


def thread_count(threads: int) -> str:
    """A number of threads in words."""
    return f"{threads} thread" + "s" * (threads > 1)
