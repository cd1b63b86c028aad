"""What the plots of `revtune bench` have in common."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"nn.GRU": "#d55e00", "nn.LSTM": "#cc79a7", "RevGRU": "#0072b2", "RevLSTM": "#009e73"}
"""By cell, apart also for colour-blind eyes."""


def blank(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as it is written to a file."""
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=130)
    return held.getvalue()
