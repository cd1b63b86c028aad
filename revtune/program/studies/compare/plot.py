"""A contest's plot: the best held-out loss of each contestant over time."""

from __future__ import annotations

import io
from statistics import median
from typing import Any

Facts = dict[str, Any]


LOOKS = {
    "plain": ("#999999", "--"), "stn": ("#0072b2", "-"), "delta": ("#d55e00", "-"), "final": ("#333333", "--"),
    "random": ("#009e73", ":"), "grid": ("#cc79a7", ":"), "tpe": ("#e69f00", ":"), "hyperband": ("#56b4e9", ":"),
    "found": ("#117733", "--"),
}  # fmt: skip


POINTS = 400


def plot(found: Facts) -> bytes:
    """A PNG: the median over seeds as a line, all seeds' range as a band."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from revtune.program.studies.compare.contest import NAMES
    from revtune.program.studies.compare.curves import at

    figure = Figure(figsize=(8.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    times = [found["budget"] * (i + 1) / POINTS for i in range(POINTS)]
    for row in found["rows"]:
        colour, style = LOOKS[row["contestant"]]
        losses = [[at(this["curve"], seconds) for this in row["runs"]] for seconds in times]
        shown = [(seconds, these) for seconds, these in zip(times, losses, strict=True) if max(these) < float("inf")]
        if not shown:
            continue
        when, these = zip(*shown, strict=True)
        axes.fill_between(
            when, [min(one) for one in these], [max(one) for one in these], color=colour, alpha=0.12, lw=0
        )
        axes.plot(when, [median(one) for one in these], style, color=colour, lw=1.8, label=NAMES[row["contestant"]])
    axes.set_xlabel({"wall": "seconds", "cpu": "seconds of the processor"}[found["clock"]])
    axes.set_ylabel("best held-out loss so far, nats")
    axes.set_title(found["recipe"])
    axes.set_xscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    ends = [at(this["curve"], found["budget"]) for row in found["rows"] for this in row["runs"]]
    if ends and max(ends) < float("inf"):
        low = min(ends)
        axes.set_ylim(low - 0.05 * (max(ends) - low) - 1e-3, low + 2.5 * (max(ends) - low) + 1e-3)
    axes.legend(fontsize=8)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=130)
    return held.getvalue()
