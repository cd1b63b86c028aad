"""Hyperparameters over training steps, a panel for each, and one for all scales that moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WIDE, HIGH, COLUMNS = 3.2, 2.2, 3


def draw(records: list[dict[str, Any]], path: str | Path | None) -> Any:
    """The figure of a history's records, written to `path` if one is given.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        needs = "history.plot needs matplotlib, which is not installed: pip install 'revtune[program]'"
        raise ImportError(needs) from error
    names = list(records[0]["values"])
    moved = [name for name in names if len({record["scales"][name] for record in records}) > 1]
    panels = 1 + len(names) + bool(moved)
    columns = min(COLUMNS, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(WIDE * columns, HIGH * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    steps = [record["step"] for record in records]
    axes[0].plot(steps, [record["valid"] for record in records], color="0.4", linewidth=1)
    axes[0].set_title("validation loss", fontsize=9)
    for axis, name in zip(axes[1:], names, strict=False):
        axis.plot(steps, [record["values"][name] for record in records], color="#0072b2", linewidth=1.5)
        axis.set_title(name, fontsize=9)
    if moved:
        axis = axes[panels - 1]
        for name in moved:
            axis.plot(steps, [record["scales"][name] for record in records], linewidth=1, label=name)
        axis.set_title("perturbation scales", fontsize=9)
        axis.legend(fontsize=6)
    for axis in axes[:panels]:
        axis.set_xlabel("training step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[panels:]:
        axis.set_axis_off()
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
