"""The figures of `revtune bench tuning` as tables, and how they stand to the goals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from revtune.program.bench.speed_cases import Goal
from revtune.program.bench.speed_table import on, ratios
from revtune.program.bench.tables import Page
from revtune.program.bench.tuning_cases import TUNED, Case, Measure, Step, goal
from revtune.program.figures import across, blank, legend, png, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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


def goals(timed: list[Record], remembered: list[Record]) -> bytes:
    """A PNG: a panel for each step, with time at each thread count and memory, by network."""
    looks = [on(threads) for threads in dict.fromkeys(record["threads"] for record in timed)]
    found = [(on(record["threads"]), cost) for record in timed for cost in times([record])]
    found += [("memory", cost) for cost in memories(remembered)]
    labels = list(dict.fromkeys(Case.of(record).label for record in (*timed, *remembered)))
    figure = blank(13, 1.7 + 0.7 * len(labels))
    panels = figure.subplots(1, len(TUNED), sharey=True)
    for axes, step in zip(panels, TUNED, strict=True):
        for look, cost in found:
            if cost.step == step:
                _ratio(axes, cost, labels.index(cost.case.label), [*looks, "memory"], look)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(title=step)
        axes.grid(alpha=0.3, axis="x")
    figure.supxlabel("time or memory over a plain step's, median and range", fontsize="medium")
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()
    legend(figure, panels[0])
    return png(figure)


def _ratio(axes: Axes, cost: Cost, place: int, looks: list[str], look: str) -> None:
    """A point with its range, and its goal as a bar."""
    turn = looks.index(look)
    height = 0.8 / len(looks)
    y = place + (turn - (len(looks) - 1) / 2) * height
    spread(axes, cost.ratios, y, turn, look)
    if cost.goal:
        across(axes, cost.goal.most, y, "goal", height=height)
