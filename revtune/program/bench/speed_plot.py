"""The figures of `revtune bench speed` as plots: ratios beside their goals; cost against length; ratios by size."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from revtune.program.bench.display import thread_count
from revtune.program.bench.speed_cases import KINDS, PAIRS, SWEEP, SweptSize, along
from revtune.program.bench.speed_lines import Line, lines
from revtune.program.bench.speed_table import Comparison, comparisons
from revtune.program.bench.worker import Record
from revtune.program.figures import COLOURS, blank, goal_bar, legend, median_and_range, png, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


NAMES: dict[SweptSize, str] = {"steps": "steps T", "hidden": "units H", "batch": "rows B"}


def goals(records: list[Record]) -> bytes:
    """A PNG: ratios of each case and thread count beside what they should be, a panel for each pair."""
    cases = list(dict.fromkeys(pair.case for pair in comparisons(records)))
    counts = sorted({record["threads"] for record in records})
    figure = blank(11, 1.7 + 0.4 * len(cases))
    panels = figure.subplots(1, len(PAIRS), sharey=True)
    for axes, (ours, theirs) in zip(panels, PAIRS, strict=True):
        for pair in (pair for pair in comparisons(records) if pair.ours == ours):
            _ratio(axes, pair, cases.index(pair.case), counts)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(xscale="log", title=f"{ours} / {theirs}", xlabel="ratio of times, median and range")
        ticks(axes.xaxis)
        axes.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(range(len(cases)), [f"{case.kind}  {case.sizes}" for case in cases])
    panels[0].set_ylabel("T, B, input, H; of a step T, B, H, V")
    panels[0].invert_yaxis()
    legend(figure, panels[0])
    return png(figure)


def _ratio(axes: Axes, pair: Comparison, row: int, counts: list[int]) -> None:
    """A point with its range; with the last thread count, the goal as bars across."""
    turn = counts.index(pair.record["threads"])
    y = row + 0.4 * ((turn + 0.5) / len(counts) - 0.5)
    median_and_range(axes, pair.ratios(), y, turn, thread_count(pair.record["threads"]))
    if pair.goal and turn + 1 == len(counts):
        for ratio, label, width in ((pair.goal.most, "goal", 3.0), (pair.goal.reach, "within reach", 1.2)):
            if ratio:
                goal_bar(axes, ratio, row, label, width=width)


def lengths(records: list[Record]) -> bytes:
    """A PNG: time against length with straight lines, and time a step beside it; a row for each kind."""
    fitted = [line for line in lines(records) if line.layers == 1]
    kinds = [kind for kind in KINDS if any(line.kind == kind for line in fitted)]
    counts = sorted({line.threads for line in fitted})
    figure = blank(8.5 * len(counts) + 1.5, 0.8 + 3.8 * len(kinds))
    grid = figure.subplots(len(kinds), 2 * len(counts), squeeze=False)
    for kind, panels in zip(kinds, grid, strict=True):
        for threads, pair in zip(counts, zip(panels[::2], panels[1::2], strict=True), strict=True):
            _length(*pair, [line for line in fitted if (line.kind, line.threads) == (kind, threads)])
            for axes in pair:
                axes.set_title(f"{KINDS[kind]}, {thread_count(threads)}", fontsize=10)
    legend(figure, grid[0][0])
    return png(figure)


def _length(whole: Axes, each: Axes, fitted: list[Line]) -> None:
    """Times and time a step of all contestants, in units of nn.GRU's at the greatest length."""
    steps, unit = max(next(line for line in fitted if line.name == "nn.GRU").points)
    for line in fitted:
        look = _look(line.name)
        x = [length for length, _ in line.points]
        whole.plot([0, steps], [line.at(0) / unit, line.at(steps) / unit], **{**look, "marker": ""}, linewidth=1)
        whole.plot(x, [seconds / unit for _, seconds in line.points], **{**look, "linestyle": "none"})
        whole.plot([], [], label=line.name, **look)  # line and marker together, for the legend alone
        each.plot(x, [seconds / length * steps / unit for length, seconds in line.points], **look)
    whole.set(xlabel=f"{NAMES['steps']} ({_at('steps')})", ylabel=f"time, nn.GRU's at T={steps:,} = 1", xlim=0, ylim=0)
    each.set(
        xscale="log", yscale="log", xlabel=f"{NAMES['steps']} ({_at('steps')})", ylabel="time a step, likewise relative"
    )
    ticks(each.yaxis)
    for axes in (whole, each):
        axes.grid(alpha=0.3)


def _look(name: str) -> dict[str, Any]:
    """Colour by cell, line and marker by what competes: a layer, the layer checkpointed, or its products alone."""
    cell = next(cell for cell in COLOURS if cell in name)
    line, marker = (":", "") if name.startswith("products") else ("--", "s") if "checkpointed" in name else ("-", "o")
    return {"color": COLOURS[cell], "linestyle": line, "marker": marker, "markersize": 4.5}


def ratios(records: list[Record]) -> bytes:
    """A PNG: ratios against length, units and rows, with one layer and two; a row for each kind and thread count."""
    rows = list(dict.fromkeys((record["kind"], record["threads"]) for record in records))
    figure = blank(14, 0.8 + 3.1 * len(rows))
    grid = figure.subplots(len(rows), len(SWEEP), squeeze=False, sharey="row")
    for (kind, threads), panels in zip(rows, grid, strict=True):
        these = [pair for pair in comparisons(records) if (pair.case.kind, pair.record["threads"]) == (kind, threads)]
        for size, axes in zip(SWEEP, panels, strict=True):
            _along(axes, size, these)
            axes.set_title(f"{KINDS[kind]}, {thread_count(threads)}", fontsize=10)
        panels[0].set_ylabel("ratio of times, median and range")
    legend(figure, grid[0][0])
    return png(figure)


def _along(axes: Axes, size: SweptSize, pairs: list[Comparison]) -> None:
    """The ratios of both pairs, with one layer and with two, against one size."""
    for layers, line in ((1, "o-"), (2, "^--")):
        for ours, theirs in PAIRS:
            swept = [pair for pair in pairs if pair.ours == ours and _varies(pair, size, layers)]
            swept.sort(key=lambda pair: getattr(pair.case.shape, size))
            x = [getattr(pair.case.shape, size) for pair in swept]
            all_ratios = [pair.ratios() for pair in swept]
            label = f"{ours} / {theirs}" + (", 2 layers" if layers == 2 else "")
            axes.plot(x, list(map(median, all_ratios)), line, color=COLOURS[ours], label=label, markersize=4.5)
            axes.fill_between(
                x, list(map(min, all_ratios)), list(map(max, all_ratios)), color=COLOURS[ours], alpha=0.12, linewidth=0
            )
    axes.axhline(1, color="black", linewidth=0.8)
    values = SWEEP[size][1]
    axes.set(xscale="log", yscale="log", xlabel=f"{NAMES[size]} ({_at(size)})")
    axes.set_xticks(values, [f"{value:,}" for value in values], rotation=45 if len(values) > 5 else 0)
    axes.minorticks_off()
    ticks(axes.yaxis)
    axes.grid(alpha=0.3)


def _varies(pair: Comparison, size: SweptSize, layers: int) -> bool:
    return pair.case.shape.layers == layers and along(size, pair.case.shape)


def _at(size: SweptSize) -> str:
    """The sizes that stay while one varies."""
    base = SWEEP[size][0]
    letters: dict[SweptSize, str] = {"steps": "T", "batch": "B", "hidden": "H"}
    return ", ".join(f"{letter}={getattr(base, other)}" for other, letter in letters.items() if other != size)


PLOTS: dict[bool, tuple[Callable[[list[Record]], bytes], ...]] = {False: (goals,), True: (lengths, ratios)}
"""What is drawn of the goals' cases, and of a sweep."""
