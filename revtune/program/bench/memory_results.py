"""The figures of `revtune bench memory` as a plot: memory against length, both on logarithmic axes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from revtune.program.bench.contestants import Shape
from revtune.program.bench.tables import Page
from revtune.program.figures import COLOURS, blank, png

HEADINGS = ("MB", "nn.GRU needs", "bytes", "bits stored", "forgotten")


NOTE = (
    "MB above the parameters and their gradients. Bytes: the same a unit and step. Bits: what the information buffer "
    "stores a unit and step, beside what the gates forgot; in a RevLSTM h and c are both units."
)


def rows(shape: Shape, results: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """The cells of the table, a row for each contestant."""
    plain = next((one["bytes"] for one in results if one["name"] == "nn.GRU" and "bytes" in one), None)
    places = shape.steps * shape.batch * shape.hidden
    for one in results:
        if "error" in one:
            yield one["name"], one["error"], "", "", "", ""
            continue
        needed, bits = max(1, one["bytes"]), one["bits_per_unit_step"]
        ratio = "" if plain is None else f"{plain / needed:.1f}x"
        stored = (f"{bits['stored']:.2f}", f"{bits['ideal']:.2f}") if bits else ("", "")
        name = one["name"] + (" (estimate)" if one.get("estimate") else "")
        yield name, f"{needed / 1e6:,.1f}", ratio, f"{needed / places:.2f}", *stored


def show(page: Page, shape: Shape, results: list[dict[str, Any]]) -> None:
    """The table of a shape."""
    page.table("Memory of one training step", str(shape), HEADINGS, rows(shape, results))


Result = dict[str, Any]


AUTO = "checkpoint_every='auto'"


def plot(results: list[Result]) -> bytes:
    """A PNG: bytes a hidden unit and row that a training step needs above its parameters, against its steps."""
    figure = blank(8.5, 5.2)
    axes = figure.subplots()
    for cell, colour in COLOURS.items():
        for name, line in ((cell, "o-"), (f"{cell}, checkpointed", "s--")):
            if points := curve(results, name):
                axes.plot(*zip(*points, strict=True), line, label=name, color=colour)
        if points := curve(results, f"{cell}, {AUTO}"):
            axes.plot(*zip(*points, strict=True), "*", label=f"{cell}, {AUTO}", color=colour, markersize=11)
        if points := curve(results, cell, estimate=True):
            name = f"{cell}, estimate"
            axes.plot(*zip(*points, strict=True), "o", label=name, color=colour, markerfacecolor="none", markersize=10)
    shapes = sorted({tuple(one["shape"][key] for key in ("steps", "batch", "hidden", "vocabulary")) for one in results})
    axes.set(xscale="log", yscale="log", ylabel="bytes a hidden unit and row", title="Memory of one training step")
    axes.set_xticks([shape[0] for shape in shapes], [_tick(*shape) for shape in shapes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_xlabel("steps of the sequence, and the shape measured there")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return png(figure)


def curve(results: list[Result], name: str, *, estimate: bool = False) -> list[tuple[int, float]]:
    """Steps, and bytes a hidden unit and row, of a contestant."""
    found = [
        one for one in results if one["name"] == name and "bytes" in one and one.get("estimate", False) == estimate
    ]
    shapes = [one["shape"] for one in found]
    return sorted(
        (shape["steps"], max(1, one["bytes"]) / (shape["batch"] * shape["hidden"]))
        for one, shape in zip(found, shapes, strict=True)
    )


def _tick(steps: int, batch: int, hidden: int, vocabulary: int) -> str:
    return f"{steps:,}\nB={batch}\nH={hidden}\nV={vocabulary:,}"
