"""A run of a task as it is shown: a live panel on a terminal, a line a validation elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from revtune.program.tuning import told_values

SHARES = ("error", "accuracy", "f1")
"""Figures that are told in per cent."""


def measure(name: str, figures: dict[str, float]) -> str:
    """A figure as people quote it, beside its loss; the loss alone where that is what they quote."""
    loss = f"loss {figures['loss']:.4f}"
    if name == "loss":
        return loss
    value = figures[name]
    return f"{loss}, {name} {f'{value:.2%}' if name in SHARES else f'{value:.2f}'}"


class RunReport:
    """Shows a run after each validation: losses, speed, and where the hyperparameters are.

    Args:
        steps: of the run, in all.
        quoted: the name of the figure that people quote, as `Task.measure`.
        plain: print lines instead of a live panel.
    """

    def __init__(self, steps: int, quoted: str, *, plain: bool | None = None) -> None:
        self.console, self.steps, self.quoted = Console(highlight=False), steps, quoted
        self.plain = not self.console.is_terminal if plain is None else plain
        self.facts: dict[str, Any] = {}
        self.before: dict[str, Any] | None = None  # the validation before the last one
        self.bar = Progress(
            BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            console=self.console, expand=True,
        )  # fmt: skip
        self.task = self.bar.add_task("steps", total=steps)
        self.live: Live | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[RunReport]:
        """Keep the panel on the terminal while the run goes on."""
        if self.plain:
            yield self
            return
        with Live(console=self.console, get_renderable=self.panel, refresh_per_second=4) as self.live:
            yield self

    def step(self, facts: dict[str, Any]) -> None:
        """Take in a step."""
        self.bar.update(self.task, completed=facts["step"])

    def valid(self, facts: dict[str, Any]) -> None:
        """Take in a validation."""
        self.before, self.facts = self.facts or None, facts
        if self.plain:
            status = ", ".join(f"{name} {value}" for name, value in self.rows())
            self.console.print(f"step {facts['step']}/{self.steps}: {status}", soft_wrap=True, markup=False)

    def rows(self) -> list[tuple[str, str]]:
        """Names and values of what the last validation found."""
        held_out = measure(self.quoted, self.facts)
        losses = [("training loss", f"{self.facts['train_loss']:.4f}"), ("held-out", held_out)]
        return losses + self.speed() + told_values(self.facts)

    def speed(self) -> list[tuple[str, str]]:
        """Updates a second between the last two validations, their own time counted; nothing after the first."""
        if self.before is None or (seconds := self.facts["wall"] - self.before["wall"]) <= 0:
            return []
        return [("speed", f"{(self.facts['step'] - self.before['step']) / seconds:.3g} updates/s")]

    def panel(self) -> Group:
        """The live view."""
        table = Table.grid(padding=(0, 2))
        for name, value in self.rows() if self.facts else []:
            table.add_row(name, value)
        return Group(self.bar, table)
