"""What the plots of `revtune bench` have in common."""

from __future__ import annotations

import io
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COLOURS = {"nn.GRU": "#d55e00", "nn.LSTM": "#cc79a7", "RevGRU": "#0072b2", "RevLSTM": "#009e73"}
"""By cell, apart also for colour-blind eyes."""


MARKERS = "osd^v"
"""By thread count, in order."""


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


def spread(axes: Axes, ratios: list[float], y: float, turn: int, label: str) -> None:
    """The median of ratios and their range, in the look of the first, second, ... thread count."""
    colour = COLOURS[("RevGRU", "RevLSTM", "nn.LSTM")[min(turn, 2)]]
    axes.plot([min(ratios), max(ratios)], [y, y], color=colour, linewidth=1.2)
    axes.plot([median(ratios)], [y], MARKERS[turn % len(MARKERS)], label=label, color=colour)


def across(axes: Axes, ratio: float, y: float, label: str, *, width: float = 3.0, height: float = 0.76) -> None:
    """A bar across a row, at a goal."""
    ends = [y - height / 2, y + height / 2]
    axes.plot([ratio] * 2, ends, color=COLOURS["nn.GRU"], linewidth=width, label=label)


def ticks(axis: Any) -> None:
    """Plain numbers on a logarithmic axis, more of them where it spans little."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 8 * low else (1, 1.25, 1.5, 2, 3, 4, 5, 6, 8)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def legend(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, without the repetitions of one."""
    handles, labels = axes.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    figure.legend(list(named.values()), list(named), loc="outside right center")
