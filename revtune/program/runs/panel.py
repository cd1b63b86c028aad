"""How a run is shown while it goes on: a live panel on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


def stored_bits(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The stored bits among the facts of a step; nothing where there are none."""
    return [("stored", f"{facts['stored_bits']:.2f} bits a unit and step")] if "stored_bits" in facts else []


class Panel:
    """A bar of the steps taken, and rows of names and values below it.

    Args:
        steps: of the run, in all.
        plain: print lines instead of a live panel; by default where there is no terminal.
    """

    def __init__(self, steps: int, *, plain: bool | None) -> None:
        self.console, self.steps = Console(highlight=False), steps
        self.plain = not self.console.is_terminal if plain is None else plain
        self.bar = Progress(
            BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            console=self.console, expand=True,
        )  # fmt: skip
        self.task = self.bar.add_task("steps", total=steps)
        self.live: Live | None = None

    def rows(self) -> list[tuple[str, str]]:
        """Names and values of what is shown now."""
        raise NotImplementedError

    @contextlib.contextmanager
    def shown(self) -> Iterator[Self]:
        """Keep the panel on the terminal while the run goes on."""
        if self.plain:
            yield self
            return
        with Live(console=self.console, get_renderable=self.panel, refresh_per_second=4) as self.live:
            yield self

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(line, soft_wrap=True, markup=False)

    def panel(self) -> Group:
        """The live view."""
        table = Table.grid(padding=(0, 2))
        for name, value in self.rows():
            table.add_row(name, value)
        return Group(self.bar, table)
