"""The figures of `revtune bench tuning` as tables and as a plot, beside the goals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from revtune.program.bench.display import Display, thread_count
from revtune.program.bench.goals import Goal
from revtune.program.bench.speed_table import ratios
from revtune.program.bench.tuning_cases import TUNED, Measure, StepKind, TuningCase, goal
from revtune.program.bench.worker import Record
from revtune.program.figures import blank, goal_bar, legend, median_and_range, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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

    case: TuningCase
    step: StepKind
    measure: Measure
    ratios: list[float]

    @property
    def goal(self) -> Goal | None:
        """The largest ratio that will do, if a goal is set."""
        return goal(self.measure, self.case.net, self.step)

    @property
    def verdict(self) -> str:
        """How the median ratio compares with the goal; empty without one."""
        return self.goal.verdict(median(self.ratios)) if self.goal else ""

    @property
    def goal_and_verdict(self) -> str:
        """Both as tables show them; empty without a goal."""
        return f"{self.goal} {self.verdict}" if self.goal else ""


def times(records: list[Record]) -> Iterator[Cost]:
    """The tuned steps' times of each record."""
    for record in records:
        for step in TUNED:
            yield Cost(TuningCase.of(record), step, "time", ratios(record["seconds"], step, "plain"))


def memories(records: list[Record]) -> Iterator[Cost]:
    """The tuned steps' memory of each record."""
    for record in records:
        for step in TUNED:
            yield Cost(
                TuningCase.of(record), step, "memory", [record["bytes"][step] / max(1, record["bytes"]["plain"])]
            )


def show_times(display: Display, records: list[Record]) -> None:
    """Show the table of a thread count."""
    rows = [
        (
            f"{cost.case.label}: {cost.step}",
            f"{median(cost.ratios):.2f}",
            f"{min(cost.ratios):.2f}-{max(cost.ratios):.2f}",
            cost.goal_and_verdict,
        )
        for cost in times(records)
    ]
    threads = thread_count(records[0]["threads"])
    display.table("Tuned over plain", f"time, {threads}", ("ratio", "range", "goal"), rows)


def show_memories(display: Display, records: list[Record]) -> None:
    """Show the table of memory."""
    plain = {TuningCase.of(record): record["bytes"]["plain"] for record in records}
    rows = [
        (
            f"{cost.case.label}: {cost.step}",
            f"{plain[cost.case] / 1e6:.1f}",
            f"{cost.ratios[0]:.2f}",
            cost.goal_and_verdict,
        )
        for cost in memories(records)
    ]
    display.table("Tuned over plain", "memory of a step", ("plain, MB", "ratio", "goal"), rows)


def conclude(display: Display, timed: list[Record], remembered: list[Record], paths: list[Path]) -> None:
    """Say what the columns are, how many goals are met, and where the figures went."""
    display.say(NOTE)
    verdicts = [cost.verdict for cost in (*times(timed), *memories(remembered)) if cost.goal]
    met = sum(verdict != "missed" for verdict in verdicts)
    display.say(f"Goals: {met} of {len(verdicts)} met.")
    display.tell("Figures and plot: " + ", ".join(map(str, paths)))


def goals(timed: list[Record], remembered: list[Record]) -> bytes:
    """A PNG: a panel for each step, with time at each thread count and memory, by network."""
    series = [*dict.fromkeys(thread_count(record["threads"]) for record in timed), "memory"]
    costs = [(thread_count(record["threads"]), cost) for record in timed for cost in times([record])]
    costs += [("memory", cost) for cost in memories(remembered)]
    labels = list(dict.fromkeys(TuningCase.of(record).label for record in (*timed, *remembered)))
    figure = blank(13, 1.7 + 0.7 * len(labels))
    panels = figure.subplots(1, len(TUNED), sharey=True)
    for axes, step in zip(panels, TUNED, strict=True):
        for name, cost in costs:
            if cost.step == step:
                _ratio(axes, cost, labels.index(cost.case.label), series, name)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(title=step)
        axes.grid(alpha=0.3, axis="x")
    figure.supxlabel("time or memory over a plain step's, median and range", fontsize="medium")
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()
    legend(figure, panels[0])
    return png(figure)


def _ratio(axes: Axes, cost: Cost, row: int, series: list[str], name: str) -> None:
    """A point with its range, and its goal as a bar; those of all series share a row."""
    number = series.index(name)
    height = 0.8 / len(series)
    y = row + (number - (len(series) - 1) / 2) * height
    median_and_range(axes, cost.ratios, y, number, name)
    if cost.goal:
        goal_bar(axes, cost.goal.most, y, "goal", height=height)
