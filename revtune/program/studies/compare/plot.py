"""A contest's plot: the best held-out loss of each contestant over time."""

from __future__ import annotations

from statistics import median

from revtune.program import figures
from revtune.program.studies.compare.contest import NAMES
from revtune.program.studies.compare.curves import best_after, seeds_differ
from revtune.program.studies.json_files import JsonObject

LOOKS = {
    "plain": ("#999999", "--"), "stn": ("#0072b2", "-"), "delta": ("#d55e00", "-"), "final": ("#333333", "--"),
    "random": ("#009e73", ":"), "grid": ("#cc79a7", ":"), "tpe": ("#e69f00", ":"), "hyperband": ("#56b4e9", ":"),
    "asha": ("#882255", ":"), "gp": ("#44aa99", ":"), "cmaes": ("#332288", ":"), "pbt": ("#aa4499", "-."),
    "found": ("#117733", "--"),
}  # fmt: skip

POINTS = 400
"""At which the lines are drawn; the figure has about two pixels for each."""


def plot(results: JsonObject) -> bytes:
    """A PNG: the median over seeds as a line, all seeds' range as a band."""
    figure = figures.blank(8.5, 5)
    axes = figure.subplots()
    times = [results["budget"] * (i + 1) / POINTS for i in range(POINTS)]
    for row in results["rows"]:
        colour, style = LOOKS[row["contestant"]]
        losses = [[best_after(run["curve"], seconds) for run in row["runs"]] for seconds in times]
        # from when on every seed has been validated
        drawn = [(seconds, seeds) for seconds, seeds in zip(times, losses, strict=True) if max(seeds) < float("inf")]
        if not drawn:
            continue
        when, by_time = zip(*drawn, strict=True)
        axes.fill_between(when, list(map(min, by_time)), list(map(max, by_time)), color=colour, alpha=0.12, lw=0)
        label = NAMES[row["contestant"]] + (f", seeds: {len(row['runs'])}" if seeds_differ(results["rows"]) else "")
        axes.plot(when, list(map(median, by_time)), style, color=colour, lw=1.8, label=label)
    axes.set_xlabel({"wall": "seconds", "cpu": "seconds of the processor"}[results["clock"]])
    axes.set_ylabel("best held-out loss so far, nats")
    axes.set_title(results["recipe"])
    axes.set_xscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    last = [best_after(run["curve"], results["budget"]) for row in results["rows"] for run in row["runs"]]
    if last and max(last) < float("inf"):
        low, spread = min(last), max(last) - min(last)
        axes.set_ylim(low - 0.05 * spread - 1e-3, low + 2.5 * spread + 1e-3)  # the ends; first losses are far above
    axes.legend(fontsize=8)
    return figures.png(figure)
