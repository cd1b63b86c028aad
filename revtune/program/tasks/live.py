"""A run of a task as it is shown: a live panel on a terminal, a line a validation elsewhere."""

from __future__ import annotations

from typing import Any

from revtune.program.runs.panel import Panel, stored_bits
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


class RunReport(Panel):
    """Shows a run after each validation: losses, speed, and where the hyperparameters are.

    Args:
        steps: of the run, in all.
        quoted: the name of the figure that people quote, as `Task.measure`.
        plain: print lines instead of a live panel.
    """

    def __init__(self, steps: int, quoted: str, *, plain: bool | None = None) -> None:
        super().__init__(steps, plain=plain)
        self.quoted = quoted
        self.facts: dict[str, Any] = {}
        self.before: dict[str, Any] | None = None  # the validation before the last one

    def step(self, facts: dict[str, Any]) -> None:
        """Take in a step."""
        self.bar.update(self.task, completed=facts["step"])

    def valid(self, facts: dict[str, Any]) -> None:
        """Take in a validation."""
        self.before, self.facts = self.facts or None, facts
        if self.plain:
            status = ", ".join(f"{name} {value}" for name, value in self.rows())
            self.say(f"step {facts['step']}/{self.steps}: {status}")

    def rows(self) -> list[tuple[str, str]]:
        """Names and values of what the last validation found."""
        if not self.facts:
            return []
        held_out = measure(self.quoted, self.facts)
        losses = [("training loss", f"{self.facts['train_loss']:.4f}"), ("held-out", held_out)]
        return losses + self.speed() + stored_bits(self.facts) + told_values(self.facts)

    def speed(self) -> list[tuple[str, str]]:
        """Updates a second between the last two validations, their own time counted; nothing after the first."""
        if self.before is None or (seconds := self.facts["wall"] - self.before["wall"]) <= 0:
            return []
        return [("speed", f"{(self.facts['step'] - self.before['step']) / seconds:.3g} updates/s")]
