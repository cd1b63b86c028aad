"""The schedule experiment's figures: a table of perplexities, and a plot of them beside the schedules of all starts."""

from __future__ import annotations

import io
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from revtune.program.recipes.output_dropout import NAME

Facts = dict[str, Any]


HEADS = ("", "held-out", "test", "best at update", "last rate")


METHODS = {"stn": "STN", "delta": "Delta-STN"}


COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00")


def label(found: Facts, name: str) -> str:
    """What tables call a contestant."""
    kind, _, rate = name.partition("-")
    best, method = f"{found['best_rate']:g}", METHODS[found["method"]]
    return {
        "tuned": f"{method} from {rate}", "fixed": f"fixed at {rate}", "noisy": f"fixed at {best}, with noise",
        "sinusoid": f"fixed at {best}, with a sinusoid", "final": f"fixed at {method}'s last rate",
        "replayed": f"{method}'s schedule, replayed",
    }[kind]  # fmt: skip


def title(found: Facts) -> str:
    """What the table holds."""
    return f"Perplexity of a language model by its output dropout; {found['updates']} updates each, the best kept"


def cells(found: Facts) -> list[list[str]]:
    """The table's rows."""
    return [
        [
            label(found, row["contestant"]), f"{row['valid']['perplexity']:.2f}", f"{row['test']['perplexity']:.2f}",
            str(row["step"]), f"{row['final_values'][NAME]:.3f}",
        ]
        for row in found["rows"]
    ]  # fmt: skip


def table(found: Facts) -> Table:
    """The table for a terminal."""
    drawn = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for head in HEADS:
        drawn.add_column(head, justify="right" if head else "left", no_wrap=True)
    for row in cells(found):
        drawn.add_row(*row)
    return drawn


def markdown(found: Facts) -> str:
    """The table for a page, and what it says."""
    lines = [title(found) + ".", "", "| " + " | ".join(HEADS) + " |", "|---|" + "---:|" * (len(HEADS) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in cells(found)]
    return "\n".join([*lines, "", *(f"- {line}" for line in verdicts(found))]) + "\n"


def of_kind(found: Facts, kind: str) -> list[Facts]:
    """The rows of a kind of contestant."""
    return [row for row in found["rows"] if row["contestant"].partition("-")[0] == kind]


def verdicts(found: Facts) -> list[str]:
    """What the figures say: whether schedules come together, and whether they beat the best fixed rate and the rest."""
    tuned, method = of_kind(found, "tuned"), METHODS[found["method"]]
    ends = [row["final_values"][NAME] for row in tuned]
    starts = [row["schedule"][0][1] for row in tuned]
    lines = [f"schedules that began {max(starts) - min(starts):.2f} apart ended {max(ends) - min(ends):.2f} apart"]
    best = next(row for row in found["rows"] if row["contestant"] == f"fixed-{found['best_rate']}")
    for split, told in (("valid", "held-out"), ("test", "test")):
        bar = best[split]["perplexity"]
        below = sum(row[split]["perplexity"] < bar for row in tuned)
        told = f"below the {told} perplexity {bar:.2f} of the best fixed rate"
        lines.append(f"{method} ends {told} from {below} of {len(tuned)} starts")
    last, again = (of_kind(found, kind)[0]["valid"]["perplexity"] for kind in ("final", "replayed"))
    how = "below" if again < last else "not below"
    return [*lines, f"the schedule replayed comes to {again:.2f}, {how} the {last:.2f} of its last rate fixed"]


def plot(found: Facts) -> bytes:
    """A PNG: rates over updates from all starts, and everybody's perplexities."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    schedules, figures = figure.subplots(1, 2)
    _schedules(schedules, found)
    _perplexities(figures, found)
    for axes in (schedules, figures):
        axes.spines[["top", "right"]].set_visible(False)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=130)
    return held.getvalue()


def _schedules(axes: Any, found: Facts) -> None:
    for place, row in enumerate(of_kind(found, "tuned")):
        steps, rates = zip(*row["schedule"], strict=True)
        name = f"from {row['contestant'].partition('-')[2]}"
        axes.plot(steps, rates, color=COLOURS[place % len(COLOURS)], lw=1.8, label=name)
    axes.axhline(found["best_rate"], color="black", linestyle=":", lw=1, label="best fixed")
    axes.set(xlabel="update", ylabel="rate of output dropout", ylim=(0, 1), title=METHODS[found["method"]])
    axes.legend(fontsize=8)


def _perplexities(axes: Any, found: Facts) -> None:
    names = [label(found, row["contestant"]) for row in found["rows"]]
    for split, told, marker in (("valid", "held-out", "o"), ("test", "test", "x")):
        values = [row[split]["perplexity"] for row in found["rows"]]
        axes.plot(values, range(len(values)), marker, color="#0072b2" if split == "valid" else "#d55e00", label=told)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.set(xlabel="perplexity")
    axes.legend(fontsize=8)
