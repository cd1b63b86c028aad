"""How far a long command is: a bar on a terminal, gone in the end; elsewhere a line for each part, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Parts:
    """Counts the parts of a long command.

    Args:
        console: where the bar or the lines go.
        lines: whether a line names each part where there is no terminal.
    """

    def __init__(self, console: Console, *, lines: bool = True) -> None:
        self.console, self.lines = console, lines and not console.is_terminal
        self.total = self.done = 0
        self._bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal,
            refresh_per_second=2,  # whatever is being measured has the processor
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None)

    @contextmanager
    def of(self, total: int) -> Iterator[Parts]:
        """Show the bar while so many parts are done."""
        self.total, self.done = total, 0
        self._bar.reset(self._task, total=total)
        with self._bar:
            yield self

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Name a part while it is done."""
        self._bar.update(self._task, description=name)
        if self.lines:
            self.console.print(f"{name}, {self.done + 1} of {self.total}", soft_wrap=True, markup=False)
        yield
        self.add(1)

    def add(self, count: int) -> None:
        """Count some parts that are done."""
        self.done += count
        self._bar.advance(self._task, count)
