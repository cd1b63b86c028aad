"""The figures of `revtune bench speed` as plots: ratios beside their goals; cost against length; ratios by size."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

from revtune.program.bench.contestants import Shape
from revtune.program.bench.speed_cases import KINDS, PAIRS, SWEEP, Axis, along
from revtune.program.bench.speed_lines import Line, lines
from revtune.program.bench.speed_table import Pair, on, pairs
from revtune.program.figures import COLOURS, across, blank, legend, png, spread, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Record = dict[str, Any]


NAMES: dict[Axis, str] = {"steps": "steps T", "hidden": "units H", "batch": "rows B"}


def goals(records: list[Record]) -> bytes:
    """A PNG: ratios of each case and thread count beside what they should be, a panel for each pair."""
    cases = list(dict.fromkeys(pair.case for pair in pairs(records)))
    counts = sorted({record["threads"] for record in records})
    figure = blank(11, 1.7 + 0.4 * len(cases))
    panels = figure.subplots(1, len(PAIRS), sharey=True)
    for axes, (ours, theirs) in zip(panels, PAIRS, strict=True):
        for pair in (one for one in pairs(records) if one.ours == ours):
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


def _ratio(axes: Axes, pair: Pair, place: int, counts: list[int]) -> None:
    """A point with its range; with the last thread count, the goal as bars across."""
    turn = counts.index(pair.record["threads"])
    y = place + 0.4 * ((turn + 0.5) / len(counts) - 0.5)
    spread(axes, pair.ratios(), y, turn, on(pair.record["threads"]))
    if pair.goal and turn + 1 == len(counts):
        for ratio, label, width in ((pair.goal.most, "goal", 3.0), (pair.goal.reach, "within reach", 1.2)):
            if ratio:
                across(axes, ratio, place, label, width=width)


def lengths(records: list[Record]) -> bytes:
    """A PNG: time against length with straight lines, and time a step beside it; a row for each kind."""
    found = [one for one in lines(records) if one.layers == 1]
    kinds = [kind for kind in KINDS if any(one.kind == kind for one in found)]
    counts = sorted({one.threads for one in found})
    figure = blank(8.5 * len(counts) + 1.5, 0.8 + 3.8 * len(kinds))
    grid = figure.subplots(len(kinds), 2 * len(counts), squeeze=False)
    for kind, panels in zip(kinds, grid, strict=True):
        for threads, pair in zip(counts, zip(panels[::2], panels[1::2], strict=True), strict=True):
            _length(*pair, [one for one in found if (one.kind, one.threads) == (kind, threads)])
            for axes in pair:
                axes.set_title(f"{KINDS[kind]}, {on(threads)}", fontsize=10)
    legend(figure, grid[0][0])
    return png(figure)


def _length(whole: Axes, each: Axes, found: list[Line]) -> None:
    """Times and time a step of all contestants, in units of nn.GRU's at the greatest length."""
    steps, unit = max(next(one for one in found if one.name == "nn.GRU").points)
    for one in found:
        look = _look(one.name)
        x = [length for length, _ in one.points]
        whole.plot([0, steps], [one.at(0) / unit, one.at(steps) / unit], **{**look, "marker": ""}, linewidth=1)
        whole.plot(x, [seconds / unit for _, seconds in one.points], **{**look, "linestyle": "none"})
        whole.plot([], [], label=one.name, **look)
        each.plot(x, [seconds / length * steps / unit for length, seconds in one.points], **look)
    whole.set(xlabel=f"{NAMES['steps']} ({_at('steps')})", ylabel=f"time, nn.GRU's at T={steps:,} = 1", xlim=0, ylim=0)
    each.set(
        xscale="log", yscale="log", xlabel=f"{NAMES['steps']} ({_at('steps')})", ylabel="time a step, likewise relative"
    )
    ticks(each.yaxis)
    for axes in (whole, each):
        axes.grid(alpha=0.3)


def _look(name: str) -> dict[str, Any]:
    """Colour by cell, line by what it does with its gates."""
    cell = next(cell for cell in COLOURS if cell in name)
    line, marker = (":", "") if name.startswith("products") else ("--", "s") if "checkpointed" in name else ("-", "o")
    return {"color": COLOURS[cell], "linestyle": line, "marker": marker, "markersize": 4.5}


def ratios(records: list[Record]) -> bytes:
    """A PNG: ratios against length, units and rows, with one layer and two; a row for each kind and thread count."""
    rows = list(dict.fromkeys((record["kind"], record["threads"]) for record in records))
    figure = blank(14, 0.8 + 3.1 * len(rows))
    grid = figure.subplots(len(rows), len(SWEEP), squeeze=False, sharey="row")
    for (kind, threads), panels in zip(rows, grid, strict=True):
        mine = [one for one in pairs(records) if (one.record["kind"], one.record["threads"]) == (kind, threads)]
        for axis, axes in zip(SWEEP, panels, strict=True):
            _along(axes, axis, mine)
            axes.set_title(f"{KINDS[kind]}, {on(threads)}", fontsize=10)
        panels[0].set_ylabel("ratio of times, median and range")
    legend(figure, grid[0][0])
    return png(figure)


def _along(axes: Axes, axis: Axis, found: list[Pair]) -> None:
    """The ratios of both pairs, with one layer and with two, against one size."""
    for layers, line in ((1, "o-"), (2, "^--")):
        for ours, theirs in PAIRS:
            chosen = [one for one in found if one.ours == ours and _on_axis(one, axis, layers)]
            chosen.sort(key=lambda one: getattr(one.case.shape, axis))
            x = [getattr(one.case.shape, axis) for one in chosen]
            all_ratios = [one.ratios() for one in chosen]
            label = f"{ours} / {theirs}" + (", 2 layers" if layers == 2 else "")
            axes.plot(x, list(map(median, all_ratios)), line, color=COLOURS[ours], label=label, markersize=4.5)
            axes.fill_between(
                x, list(map(min, all_ratios)), list(map(max, all_ratios)), color=COLOURS[ours], alpha=0.12, linewidth=0
            )
    axes.axhline(1, color="black", linewidth=0.8)
    values = SWEEP[axis][1]
    axes.set(xscale="log", yscale="log", xlabel=f"{NAMES[axis]} ({_at(axis)})")
    axes.set_xticks(values, [f"{value:,}" for value in values], rotation=45 if len(values) > 5 else 0)
    axes.minorticks_off()
    ticks(axes.yaxis)
    axes.grid(alpha=0.3)


def _on_axis(pair: Pair, axis: Axis, layers: int) -> bool:
    shape: Shape = pair.case.shape
    return shape.layers == layers and along(axis, shape)


def _at(axis: Axis) -> str:
    """The sizes that stay while one varies."""
    base = SWEEP[axis][0]
    letters: dict[Axis, str] = {"steps": "T", "batch": "B", "hidden": "H"}
    return ", ".join(f"{letter}={getattr(base, other)}" for other, letter in letters.items() if other != axis)


PLOTS: dict[bool, tuple[Callable[[list[Record]], bytes], ...]] = {False: (goals,), True: (lengths, ratios)}
"""What is drawn of the goals' cases, and of a sweep."""
