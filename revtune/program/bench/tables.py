"""Where the program's measurements are shown: a terminal, or a page of markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from revtune.program.tables import markdown

Rows = Iterable[Sequence[str]]


class Page(Protocol):
    """What takes tables and sentences."""

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """Say what is being measured while it is."""

    def table(self, about: str, corner: str, headings: Sequence[str], rows: Rows) -> None:
        """Show a table: what it is about, what tells it from its like, and the headings of all columns but the first.

        Rows that begin with a reversible layer stand out.
        """

    def say(self, text: str) -> None:
        """Show a sentence."""

    def tell(self, text: str) -> None:
        """Show what only the person at the keyboard cares for."""


class Terminal:
    """A terminal."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """A line that goes when it is over."""
        return self.console.status(f"measuring {what}")

    def table(self, about: str, corner: str, headings: Sequence[str], rows: Rows) -> None:
        """A title above; all columns but the first to the right; no frame where it would not fit."""
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
        """As it is."""
        self.console.print(text, markup=False)

    tell = say


class Markdown:
    """Tables for a README."""

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Say nothing."""
        yield

    def table(self, about: str, corner: str, headings: Sequence[str], rows: Rows) -> None:
        """What tells it from its like in the corner."""
        print(markdown([corner, *headings], rows), end="\n\n", flush=True)

    def say(self, text: str) -> None:
        """As it is."""
        print(text)

    def tell(self, text: str) -> None:
        """Nothing."""
