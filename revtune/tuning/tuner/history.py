"""What each validation step came to, written as JSON lines or drawn over training steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, COLUMNS = 3.2, 2.2, 3  # of a panel in inches; panels in a row


class History:
    """Records of validation steps in order, each with step, seconds, valid (the loss), values and scales by name."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def add(self, record: dict[str, Any]) -> None:
        """Append a record."""
        self.records.append(record)

    def __len__(self) -> int:
        return len(self.records)

    def write(self, path: str | Path) -> None:
        """Write all records, one JSON object a line."""
        Path(path).write_text("".join(json.dumps(record) + "\n" for record in self.records), encoding="utf-8")

    def numbers(self) -> dict[str, float]:
        """The last record as numbers by name, "values/dropout" and "scales/dropout" for a hyperparameter's.

        A logger takes them in one line: `writer.log(tuner.history.numbers(), step=tuner.steps)`.

        Raises:
            ValueError: there is no record yet.
        """
        if not self.records:
            raise ValueError("there are no numbers: no validation step has been taken yet")
        record = self.records[-1]
        found = {name: value for name, value in record.items() if isinstance(value, int | float)}
        for group in ("values", "scales"):
            found |= {f"{group}/{name}": value for name, value in record[group].items()}
        return found

    def column(self, name: str) -> list[float]:
        """The values of one hyperparameter over validation steps."""
        return [record["values"][name] for record in self.records]

    def plot(self, path: str | Path | None = None) -> Any:
        """A figure of the validation loss and of every value over training steps, written to `path` if one is given.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: there is no record yet.
        """
        if not self.records:
            raise ValueError("there is nothing to plot: no validation step has been taken yet")
        return draw(self.records, path)


def draw(records: list[dict[str, Any]], path: str | Path | None) -> Any:
    """A panel for the validation loss, for each hyperparameter, and for all scales that moved; written to `path` too.

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
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained")
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
