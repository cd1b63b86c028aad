"""The figures of `revtune bench memory`: a table for each shape, and a plot of memory against length."""

from __future__ import annotations

from collections.abc import Iterator

from revtune.program.bench.contestants import Shape
from revtune.program.bench.display import Display
from revtune.program.bench.worker import Record
from revtune.program.figures import COLOURS, blank, png

AUTO = "checkpoint_every='auto'"
"""What the names of contestants say of checkpoints that `rewind_loss` places itself."""

HEADINGS = ("MB", "nn.GRU needs", "bytes", "bits stored", "forgotten")

NOTE = (
    "MB above the parameters and their gradients, in the middle one of three processes. Bytes: the same a unit and "
    "step. Bits: what the information buffer stores a unit and step, beside what the gates forgot; in a RevLSTM h and "
    "c are both units."
)


def rows(shape: Shape, results: list[Record]) -> Iterator[tuple[str, ...]]:
    """The cells of the table, a row for each contestant."""
    plain = next((result["bytes"] for result in results if result["name"] == "nn.GRU" and "bytes" in result), None)
    unit_steps = shape.steps * shape.batch * shape.hidden
    for result in results:
        if "error" in result:
            yield result["name"], result["error"], "", "", "", ""
            continue
        needed, bits = max(1, result["bytes"]), result["bits_per_unit_step"]  # a peak may lie below the gradients
        ratio = "" if plain is None else f"{plain / needed:.1f}x"
        stored = (f"{bits['stored']:.2f}", f"{bits['ideal']:.2f}") if bits else ("", "")
        name = result["name"] + (" (estimate)" if result.get("estimate") else "")
        yield name, f"{needed / 1e6:,.1f}", ratio, f"{needed / unit_steps:.2f}", *stored


def show(display: Display, shape: Shape, results: list[Record]) -> None:
    """Show the table of a shape."""
    display.table("Memory of one training step", str(shape), HEADINGS, rows(shape, results))


def plot(results: list[Record]) -> bytes:
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
    sizes = ("steps", "batch", "hidden", "vocabulary")
    shapes = sorted({tuple(result["shape"][size] for size in sizes) for result in results})
    axes.set(xscale="log", yscale="log", ylabel="bytes a hidden unit and row", title="Memory of one training step")
    axes.set_xticks([shape[0] for shape in shapes], [_tick(*shape) for shape in shapes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_xlabel("steps of the sequence, and the shape measured there")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return png(figure)


def curve(results: list[Record], name: str, *, estimate: bool = False) -> list[tuple[int, float]]:
    """Steps, and bytes a hidden unit and row, of a contestant."""
    measured = [result for result in results if result["name"] == name and "bytes" in result]
    return sorted(
        (shape["steps"], max(1, result["bytes"]) / (shape["batch"] * shape["hidden"]))
        for result in measured
        for shape in [result["shape"]]
        if result.get("estimate", False) == estimate
    )


def _tick(steps: int, batch: int, hidden: int, vocabulary: int) -> str:
    return f"{steps:,}\nB={batch}\nH={hidden}\nV={vocabulary:,}"
