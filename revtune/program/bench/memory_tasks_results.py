"""The figures of `revtune bench memory --tasks`: a table for each pair of nets, and a plot of memory against length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from revtune.program.bench.display import Display
from revtune.program.bench.memory_results import AUTO
from revtune.program.bench.memory_sweep import STORED_SHARE
from revtune.program.bench.speed_cases import PAIRS
from revtune.program.bench.worker import Record
from revtune.program.figures import COLOURS, blank, png

NOTE = (
    "MB above parameters, gradients, inputs and targets, and seconds of the processor for one step, on one thread; of "
    "ours the middle ones of three processes. *: an estimate from an eighth of the steps. Checkpointed: "
    f"torch.utils.checkpoint in sqrt(T) segments; auto: {AUTO}."
)

ABOVE, LESS, WORTH = 15e6, 40, 600e6
"""The goals: at most so many bytes, and so many times less wherever torch's layer takes over so many. The policy may
take `STORED_SHARE` times what is stored, and a chunk, as in the sweep."""

Grouped = dict[str, list[Record]]


def by_task(records: dict[str, Record]) -> Grouped:
    """The records of each task, by its name."""
    found: Grouped = {}
    for record in records.values():
        found.setdefault(record["task"]["name"], []).append(record)
    return found


def show(display: Display, records: dict[str, Record]) -> None:
    """Show the table, and how many goals are met."""
    groups = by_task(records)
    for ours, theirs in PAIRS:
        headings = ("T, B, I, H", theirs, "checkpointed", ours, "auto", f"less than {theirs}")
        rows = [row(group, ours, theirs) for group in groups.values()]
        display.table("Memory of one training step", "MB, and seconds", headings, rows)
    met = [verdict for group in groups.values() for verdict in goals(group).values()]
    display.say(NOTE)
    bounds = f"at most {ABOVE / 1e6:.0f} MB (the policy: {STORED_SHARE} times what is stored, and a chunk)"
    ratio = f"at least {LESS} times less than torch's layer where that takes over {WORTH / 1e6:.0f} MB"
    display.say(f"Goals: {bounds}, and {ratio}: {sum(met)} of {len(met)} met.")


def goals(records: Sequence[Record]) -> dict[str, bool]:
    """Whether each of ours at a task meets its goals, by name; `records` are those of the task."""
    plain = {record["name"]: record for record in records if "bytes" in record}
    found = {}
    for ours, theirs in PAIRS:
        for record in (record for name, record in plain.items() if name.startswith(ours)):
            if record["task"]["wanted"] == "policy":
                small = record["bytes"] <= STORED_SHARE * record["stored"] + record["chunk"]
            else:
                small = record["bytes"] <= ABOVE
            most = plain[theirs]["bytes"] if theirs in plain else 0
            found[record["name"]] = small and (most <= WORTH or LESS * record["bytes"] <= most)
    return found


def row(group: list[Record], ours: str, theirs: str) -> tuple[str, ...]:
    """A task as a row of the table of a pair."""
    named, task = {record["name"]: record for record in group}, group[0]["task"]
    names = (theirs, f"{theirs}, checkpointed", ours, f"{ours}, {AUTO}")
    sizes = ", ".join(f"{task[size]:,}" for size in ("steps", "rows", "inputs", "hidden"))
    least = min((record["bytes"] for name in names[2:] if "bytes" in (record := named.get(name, {}))), default=0)
    most = named.get(theirs, {}).get("bytes", 0)
    less = f"{most / least:,.0f}x" if least and most else ""
    return task["name"], sizes, *(cell(named.get(name)) for name in names), less


def cell(record: Record | None) -> str:
    """Memory and time of a case; why it failed."""
    if record is None or "error" in record:
        return record["error"] if record else ""
    return f"{record['bytes'] / 1e6:,.1f}{'*' if record.get('estimate') else ''}, {seconds(record['seconds'])} s"


def seconds(taken: float) -> str:
    """Two or three digits of a time."""
    return f"{taken:,.0f}" if taken >= 10 else f"{taken:.1f}" if taken >= 1 else f"{taken:.2f}"


def plot(records: dict[str, Record]) -> bytes:
    """A PNG: MB of a training step against its length, a point for each contestant, tasks named beside theirs."""
    figure = blank(8.5, 5.2)
    axes = figure.subplots()
    for net, colour in COLOURS.items():
        for suffix, marker in (("", "o"), (", checkpointed", "s"), (f", {AUTO}", "*")):
            if points := list(at(records, f"{net}{suffix}")):
                face = "none" if suffix == ", checkpointed" else colour
                look: dict[str, Any] = {"color": colour, "alpha": 0.85, "markerfacecolor": face}
                axes.plot(*zip(*points, strict=True), marker, label=f"{net}{suffix}", **look)
    tops: list[tuple[int, float, str]] = []
    for name, group in by_task(records).items():
        if found := [record["bytes"] / 1e6 for record in group if "bytes" in record]:
            steps = group[0]["task"]["steps"]
            axes.plot([steps, steps], [min(found), max(found)], color="grey", linewidth=0.6, zorder=0)
            tops.append((steps, max(found), name))
    for steps, top, name in apart(tops):
        axes.annotate(f" {name}", (steps, top), rotation=38, fontsize=8, va="bottom", rotation_mode="anchor")
    axes.set(xscale="log", yscale="log", xlabel="steps of the sequence", ylabel="MB above inputs and targets")
    axes.set_title("Memory of one training step at ten shapes of real work")
    low, high = axes.get_ylim()
    axes.set_ylim(low, 6 * high)  # room for names
    left, right = axes.get_xlim()
    axes.set_xlim(left, 5 * right)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return png(figure)


def at(records: dict[str, Record], name: str) -> Iterator[tuple[int, float]]:
    """Steps and MB of a contestant at each task."""
    for record in records.values():
        if record["name"] == name and "bytes" in record:
            yield record["task"]["steps"], max(1, record["bytes"]) / 1e6


def apart(tops: list[tuple[int, float, str]]) -> list[tuple[int, float, str]]:
    """Where names stand, by steps, height and name: those less than a tenth apart in steps stand in one line."""
    found: list[tuple[int, float, str]] = []
    for steps, top, name in sorted(tops):
        if found and steps < 1.1 * found[-1][0]:
            before, height, others = found[-1]
            found[-1] = (before, max(height, top), f"{others}; {name}")
        else:
            found.append((steps, top, name))
    return found
