"""What hyperparameters did over a run: a record for every validation step, as JSON lines and as a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class History:
    """Records in order, each with step, seconds, valid (loss), values and scales by name."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def add(self, record: dict[str, Any]) -> None:
        """Take down one more."""
        self.records.append(record)

    def __len__(self) -> int:
        return len(self.records)

    def write(self, path: str | Path) -> None:
        """Write all records, one JSON object a line."""
        Path(path).write_text("".join(json.dumps(record) + "\n" for record in self.records), encoding="utf-8")

    def column(self, name: str) -> list[float]:
        """The values of one hyperparameter."""
        return [record["values"][name] for record in self.records]

    def plot(self, path: str | Path | None = None) -> Any:
        """The figure of the validation loss and every value over training steps, as a file too if `path` is given.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: there is no record yet.
        """
        if not self.records:
            raise ValueError("there is nothing to plot: no validation step has been taken yet")
        from revtune.history_plot import draw

        return draw(self.records, path)
