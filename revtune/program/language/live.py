"""How a run goes: a live panel on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import time
from typing import Any

from revtune.program.data.vocabulary import TextUnit
from revtune.program.language.config import Config
from revtune.program.machine import resident_bytes
from revtune.program.runs.panel import Panel, stored_bits
from revtune.program.tasks.task import perplexity
from revtune.program.tuning import told_values

LINE_EVERY = 15.0
"""Seconds between lines where there is no panel."""

SMOOTHING = 0.95
"""Share of the mean so far in the next one: a mean over about the last 20 steps."""


def measure(unit: TextUnit, loss: float) -> str:
    """A loss in nats a token in the usual unit: bits a byte, or perplexity for words."""
    return f"{loss / math.log(2):.3f} bits a byte" if unit == "byte" else f"perplexity {perplexity(loss):.1f}"


class Report(Panel):
    """Shows smoothed loss, speed, memory, bits stored, and what is tuned, after each step.

    Args:
        config: of the run.
        plain: print a line every 15 seconds instead of a live panel.
    """

    def __init__(self, config: Config, *, plain: bool | None = None) -> None:
        super().__init__(config.learning.steps, plain=plain)
        self.unit, self.lr_too = config.text.unit, config.learning.lr_too
        self.latest: dict[str, Any] = {}
        self.loss = self.speed = 0.0
        self.weight = 0.0
        self.valid_line = ""
        self.printed = time.monotonic()

    def step(self, facts: dict[str, Any]) -> None:
        """Take in a step."""
        self.latest.update(facts)
        self.weight = SMOOTHING * self.weight + 1 - SMOOTHING  # tends to 1: the first steps make a mean by themselves
        share = (1 - SMOOTHING) / self.weight
        self.loss += share * (facts["loss"] - self.loss)
        self.speed += share * (facts["tokens"] / facts["seconds"] - self.speed)
        self.bar.update(self.task, completed=facts["step"])
        if self.plain and (time.monotonic() - self.printed > LINE_EVERY or facts["step"] in (1, self.steps)):
            self.printed = time.monotonic()
            values = ", ".join(f"{name} {value}" for name, value in self.status())
            self.say(f"step {facts['step']}/{self.steps}: {values}")

    def valid(self, facts: dict[str, Any]) -> None:
        """Take in a validation."""
        self.valid_line = f"{measure(self.unit, facts['valid_loss'])} at step {facts['step']}"
        if self.plain:
            self.say(f"validation: {self.valid_line}")

    def status(self) -> list[tuple[str, str]]:
        """Names and values of what is shown."""
        name = "byte" if self.unit == "byte" else "word"
        rows = [
            ("loss", f"{self.loss:.3f} nats"),
            ("that is", measure(self.unit, self.loss)),
            ("speed", f"{self.speed:,.0f} {name}s/s"),
            ("memory now", f"{resident_bytes() / 2**20:,.0f} MiB"),
        ]
        rows += stored_bits(self.latest)
        if "held_out_loss" in self.latest:
            rows.append(("tuned on", f"{self.latest['held_out_loss']:.3f} nats"))
        if self.lr_too and "lr" in self.latest:
            rows.append(("learning rate", f"{self.latest['lr']:.2g}"))
        return rows + told_values(self.latest)

    def rows(self) -> list[tuple[str, str]]:
        """What is shown, with the last validation."""
        if not self.latest:
            return []
        return self.status() + ([("validation", self.valid_line)] if self.valid_line else [])
