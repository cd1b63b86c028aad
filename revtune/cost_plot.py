"""The figures of `revtune bench tuning` as a plot: ratios beside their goals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from revtune.cost_cases import TUNED, Case
from revtune.cost_table import Cost, memories, times
from revtune.drawing import across, blank, legend, png, spread
from revtune.speed_table import on

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]


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
