"""The schedule experiment's figures: a table of perplexities, and a plot of them beside the schedules of all starts."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from revtune.program import figures, tables
from revtune.program.recipes.output_dropout import NAME
from revtune.program.studies.json_files import JsonObject

HEADINGS = ("", "held-out", "test", "best at update", "last rate")

METHODS = {"stn": "STN", "delta": "Delta-STN"}

COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00")


def label(results: JsonObject, name: str) -> str:
    """What tables call a contestant."""
    kind, _, rate = name.partition("-")
    best, method = f"{results['best_rate']:g}", METHODS[results["method"]]
    return {
        "tuned": f"{method} from {rate}", "fixed": f"fixed at {rate}", "noisy": f"fixed at {best}, with noise",
        "sinusoid": f"fixed at {best}, with a sinusoid", "final": f"fixed at {method}'s last rate",
        "replayed": f"{method}'s schedule, replayed",
    }[kind]  # fmt: skip


def title(results: JsonObject) -> str:
    """What the table holds."""
    return f"Perplexity of a language model by its output dropout; {results['updates']} updates each, the best kept"


def cells(results: JsonObject) -> list[list[str]]:
    """The table's rows."""
    return [
        [
            label(results, row["contestant"]), f"{row['valid']['perplexity']:.2f}", f"{row['test']['perplexity']:.2f}",
            str(row["step"]), f"{row['final_values'][NAME]:.3f}",
        ]
        for row in results["rows"]
    ]  # fmt: skip


def table(results: JsonObject) -> Table:
    """The table for a terminal."""
    shown = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in HEADINGS:
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in cells(results):
        shown.add_row(*row)
    return shown


def markdown(results: JsonObject) -> str:
    """The table for a page, and what it says."""
    lines = [title(results) + ".", "", tables.markdown(HEADINGS, cells(results)), ""]
    return "\n".join([*lines, *(f"- {line}" for line in verdicts(results))]) + "\n"


def of_kind(results: JsonObject, kind: str) -> list[JsonObject]:
    """The rows of a kind of contestant."""
    return [row for row in results["rows"] if row["contestant"].partition("-")[0] == kind]


def verdicts(results: JsonObject) -> list[str]:
    """What the figures say: whether schedules come together, and whether they beat the best fixed rate and the last."""
    tuned, method = of_kind(results, "tuned"), METHODS[results["method"]]
    ends = [row["final_values"][NAME] for row in tuned]
    starts = [row["schedule"][0][1] for row in tuned]
    lines = [f"schedules that began {max(starts) - min(starts):.2f} apart ended {max(ends) - min(ends):.2f} apart"]
    best = next(row for row in results["rows"] if row["contestant"] == f"fixed-{results['best_rate']}")
    for split, name in (("valid", "held-out"), ("test", "test")):
        bar = best[split]["perplexity"]
        below = sum(row[split]["perplexity"] < bar for row in tuned)
        where = f"below the {name} perplexity {bar:.2f} of the best fixed rate"
        lines.append(f"{method} ends {where} from {below} of {len(tuned)} starts")
    last, again = (of_kind(results, kind)[0]["valid"]["perplexity"] for kind in ("final", "replayed"))
    how = "below" if again < last else "not below"
    return [*lines, f"the schedule replayed comes to {again:.2f}, {how} the {last:.2f} of its last rate fixed"]


def plot(results: JsonObject) -> bytes:
    """A PNG: rates over updates from all starts, and the perplexities of all contestants."""
    figure = figures.blank(11, 4.8)
    schedules, perplexities = figure.subplots(1, 2)
    _schedules(schedules, results)
    _perplexities(perplexities, results)
    for axes in (schedules, perplexities):
        axes.spines[["top", "right"]].set_visible(False)
    return figures.png(figure)


def _schedules(axes: Any, results: JsonObject) -> None:
    for number, row in enumerate(of_kind(results, "tuned")):
        steps, rates = zip(*row["schedule"], strict=True)
        name = f"from {row['contestant'].partition('-')[2]}"
        axes.plot(steps, rates, color=COLOURS[number % len(COLOURS)], lw=1.8, label=name)
    axes.axhline(results["best_rate"], color="black", linestyle=":", lw=1, label="best fixed")
    axes.set(xlabel="update", ylabel="rate of output dropout", ylim=(0, 1), title=METHODS[results["method"]])
    axes.legend(fontsize=8)


def _perplexities(axes: Any, results: JsonObject) -> None:
    names = [label(results, row["contestant"]) for row in results["rows"]]
    for split, name, marker, colour in (("valid", "held-out", "o", "#0072b2"), ("test", "test", "x", "#d55e00")):
        values = [row[split]["perplexity"] for row in results["rows"]]
        axes.plot(values, range(len(values)), marker, color=colour, label=name)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.set(xlabel="perplexity")
    axes.legend(fontsize=8)
