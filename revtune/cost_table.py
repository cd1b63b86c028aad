"""The figures of `revtune bench tuning` as tables, and how they stand to the goals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from revtune.cost_cases import TUNED, Case, Measure, Step, goal
from revtune.page import Page
from revtune.speed_cases import Goal
from revtune.speed_table import on, ratios

Record = dict[str, Any]
NOTE = (
    "Ratio: time of a whole step, with its update, over that of a training step of the plain network, with the same "
    "regularizers at fixed values: median over rounds; range: of a round's, least to largest. STN and Delta-STN: "
    "training steps; validation: steps of the hyperparameters. Memory: a step's peak above weights and optimizers, "
    "likewise over a plain step's."
)


@dataclass(frozen=True)
class Cost:
    """A tuned step beside a plain one.

    Attributes:
        case: whose.
        step: which.
        measure: of what.
        ratios: to the plain one, of each round; of memory there is one.
    """

    case: Case
    step: Step
    measure: Measure
    ratios: list[float]

    @property
    def goal(self) -> Goal | None:
        """What we have set ourselves."""
        return goal(self.measure, self.case.net, self.step)

    @property
    def verdict(self) -> str:
        """How it stands to the goal; empty without one."""
        return self.goal.verdict(median(self.ratios)) if self.goal else ""

    @property
    def told(self) -> str:
        """The goal and the verdict."""
        return f"{self.goal} {self.verdict}" if self.goal else ""


def times(records: list[Record]) -> Iterator[Cost]:
    """Of each record the tuned steps."""
    for record in records:
        for step in TUNED:
            yield Cost(Case.of(record), step, "time", ratios(record["seconds"], step, "plain"))


def memories(records: list[Record]) -> Iterator[Cost]:
    """Likewise of memory."""
    for record in records:
        for step in TUNED:
            yield Cost(Case.of(record), step, "memory", [record["bytes"][step] / max(1, record["bytes"]["plain"])])


def show_times(page: Page, records: list[Record]) -> None:
    """The table of a thread count."""
    rows = [
        (
            f"{one.case.label}: {one.step}",
            f"{median(one.ratios):.2f}",
            f"{min(one.ratios):.2f}-{max(one.ratios):.2f}",
            one.told,
        )
        for one in times(records)
    ]
    page.table("Tuned over plain", f"time, {on(records[0]['threads'])}", ("ratio", "range", "goal"), rows)


def show_memories(page: Page, records: list[Record]) -> None:
    """The table of memory."""
    plain = {Case.of(record): record["bytes"]["plain"] for record in records}
    rows = [
        (f"{one.case.label}: {one.step}", f"{plain[one.case] / 1e6:.1f}", f"{one.ratios[0]:.2f}", one.told)
        for one in memories(records)
    ]
    page.table("Tuned over plain", "memory of a step", ("plain, MB", "ratio", "goal"), rows)


def conclude(page: Page, timed: list[Record], remembered: list[Record], places: list[Path]) -> None:
    """What the columns are, how many goals are met, and where the figures went."""
    page.say(NOTE)
    verdicts = [one.verdict for one in (*times(timed), *memories(remembered)) if one.goal]
    met = sum(verdict != "missed" for verdict in verdicts)
    page.say(f"Goals: {met} of {len(verdicts)} met.")
    page.tell("Figures and plot: " + ", ".join(map(str, places)))
