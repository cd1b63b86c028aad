"""The repeat study's figures: a table by model and length, and a plot of both ways to see the nets fail."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from rich.table import Table

from revtune.program import figures, tables
from revtune.program.tasks.repeat import MODELS, RepeatStudy

Figures = dict[str, Any]

COLOURS = dict(zip(MODELS, ("#666666", "#56b4e9", "#0072b2", "#009e73", "#d55e00", "#cc79a7"), strict=True))

MARKERS = dict(zip(MODELS, ("", "", "o", "s", "d", "v"), strict=True))

WIDTHS = dict(zip(MODELS, (9, 6.5, 4, 1.5, 1.8, 1.8), strict=True))
"""Nets that solve the task lie on one line; the wider ones show from below."""


def summary(study: RepeatStudy, cells: list[Figures]) -> list[Figures]:
    """Mean, least and most over seeds of the share said right, with mean loss and updates, by model and length."""
    rows = []
    for model in MODELS:
        for steps in study.lengths:
            runs = [cell for cell in cells if cell["model"] == model and cell["steps"] == steps]
            if runs:
                right = [run["right"] for run in runs]
                spread = {"right": fmean(right), "least": min(right), "most": max(right)}
                means = {key: fmean(run[key] for run in runs) for key in ("loss", "updates")}
                rows.append({"model": model, "steps": steps, "seeds": len(runs), **spread, **means})
    return rows


def rows(study: RepeatStudy, cells: list[Figures]) -> list[list[str]]:
    """The table's cells: a row a model, a column a length."""
    entries = {(entry["model"], entry["steps"]): entry for entry in summary(study, cells)}
    return [[model, *(percent(entries.get((model, steps))) for steps in study.lengths)] for model in MODELS]


def percent(entry: Figures | None) -> str:
    """Per cent right, with half the range over seeds unless it rounds to 0; nothing where no cell is done."""
    if entry is None:
        return ""
    half = f"{50 * (entry['most'] - entry['least']):.0f}"
    return f"{100 * entry['right']:.0f}" + (f"±{half}" if half != "0" else "")


def title(study: RepeatStudy) -> str:
    """What the table holds."""
    runs = f"mean ± half the range of {study.seeds} seeds" if study.seeds > 1 else "one seed"
    return f"Per cent of tokens repeated one step later, by length; {runs}, at most {study.updates} updates"


def table(study: RepeatStudy, cells: list[Figures]) -> Table:
    """The table for a terminal."""
    shown = Table()
    shown.add_column("", no_wrap=True)
    for steps in study.lengths:
        shown.add_column(str(steps), justify="right", no_wrap=True)
    for row in rows(study, cells):
        shown.add_row(*row)
    return shown


def markdown(study: RepeatStudy, cells: list[Figures]) -> str:
    """The table for a page."""
    lines = tables.markdown(["length", *map(str, study.lengths)], rows(study, cells))
    return f"{title(study)}.\n\n{lines}\n"


def plot(study: RepeatStudy, cells: list[Figures]) -> bytes:
    """A PNG: what is right by length on the left, by step of the longest sequence on the right."""
    figure = figures.blank(11, 4.6)
    by_length, by_step = figure.subplots(1, 2, sharey=True)
    for model in MODELS:
        _by_length(by_length, study, cells, model)
        _by_step(by_step, study, cells, model)
    for axes in (by_length, by_step):
        axes.axhline(100 / study.tokens, color="black", linestyle=":", linewidth=1, label="guessing")
        axes.grid(alpha=0.3)
        axes.set_ylim(0, 105)
    by_length.set(
        xscale="log", xlabel="length of the sequences (steps)", ylabel="tokens repeated right (%)",
        title="By length",
    )  # fmt: skip
    by_length.set_xticks(study.lengths, [str(steps) for steps in study.lengths])
    by_length.minorticks_off()
    by_step.set(xlabel="step of the sequence", title=f"By step, length {max(study.lengths)}")
    task = f"Repeating the previous of {study.tokens} tokens with {study.hidden} units"
    figure.suptitle(f"{task}; Rev nets forget at most {study.max_forget_bits:g} bits a unit and step, NF nets nothing")
    figure.legend(*by_length.get_legend_handles_labels(), loc="outside right center")
    return figures.png(figure)


def _by_length(axes: Any, study: RepeatStudy, cells: list[Figures], model: str) -> None:
    """Mean over seeds, with the range as a band."""
    entries = [entry for entry in summary(study, cells) if entry["model"] == model]
    steps = [entry["steps"] for entry in entries]
    mean, least, most = ([100 * entry[key] for entry in entries] for key in ("right", "least", "most"))
    axes.fill_between(steps, least, most, color=COLOURS[model], alpha=0.2, linewidth=0)
    axes.plot(steps, mean, label=model, marker=MARKERS[model], **_line(model))


def _by_step(axes: Any, study: RepeatStudy, cells: list[Figures], model: str) -> None:
    """Mean over seeds at each step of the longest sequences."""
    longest = max(study.lengths)
    runs = [cell["by_step"] for cell in cells if cell["model"] == model and cell["steps"] == longest]
    if runs:
        mean = [100 * fmean(shares) for shares in zip(*runs, strict=True)]
        axes.plot(range(2, longest + 1), mean, **_line(model))  # the first step repeats nothing


def _line(model: str) -> dict[str, Any]:
    width = WIDTHS[model]
    style = "--" if model.startswith("NF-") else "-"
    return {"color": COLOURS[model], "linestyle": style, "linewidth": width, "markersize": 5 + width}
