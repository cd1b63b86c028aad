"""A contest as it is shown: a bar of the contestant's time on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from revtune.program.runs.clock import ClockKind

LINE_EVERY = 60.0
"""Seconds."""


class CompareReport:
    """Shows what a contestant does.

    Args:
        console: where to.
        name: of the contestant, with its seed.
        budget: the seconds that it has.
        clock: which clock counts them.

    Attributes:
        best: its lowest held-out loss so far.
    """

    def __init__(self, console: Console, name: str, budget: float, clock: ClockKind) -> None:
        self.console, self.name, self.clock, self.best = console, name, clock, math.inf
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} s"),
            console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task(name, total=budget)
        self.printed = time.monotonic()

    @contextlib.contextmanager
    def shown(self) -> Iterator[CompareReport]:
        """Keep the bar on the terminal while it learns."""
        with self.bar:
            yield self

    def step(self, facts: dict[str, Any]) -> None:
        """Take in a step."""
        self.bar.update(self.task, completed=facts[self.clock])

    def valid(self, facts: dict[str, Any]) -> None:
        """Take in a validation."""
        self.best = min(self.best, facts["loss"])
        part = next((f", {part} {facts[part]}" for part in ("trial", "member") if part in facts), "")
        status = f"{self.name}{part}: best held-out loss {self.best:.4f}"
        self.bar.update(self.task, completed=facts[self.clock], description=status)
        if not self.console.is_terminal and time.monotonic() - self.printed > LINE_EVERY:
            self.printed = time.monotonic()
            self.say(f"{status} after {facts[self.clock]:.0f} s")

    def through(self, facts: dict[str, Any]) -> None:
        """Say what it came to."""
        trials = f", {facts['trials']} trials and {facts['pruned']} cut short" if "trials" in facts else ""
        losses = f"held-out loss {facts['valid']['loss']:.4f}, test {facts['test']['loss']:.4f}"
        self.say(f"{self.name}: {losses} after {facts[self.clock]:.0f} s{trials}")

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(line, soft_wrap=True, markup=False)
