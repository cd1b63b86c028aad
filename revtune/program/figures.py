"""What the program's plots have in common."""

from __future__ import annotations

import io
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COLOURS = {"nn.GRU": "#d55e00", "nn.LSTM": "#cc79a7", "RevGRU": "#0072b2", "RevLSTM": "#009e73"}
"""By recurrent layer: four of the colours of Okabe and Ito, which colour-blind eyes tell apart."""

DOTS = 130
"""An inch: a plot of 8 inches has about a thousand pixels, the width of a README."""

MARKERS = "osd^v"
"""By thread count, or whatever else has a row's ratios beside each other."""


def blank(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # attaches itself; pyplot would choose a canvas of the desktop
    return figure


def png(figure: Figure, dots: int = DOTS) -> bytes:
    """A figure as the content of a PNG file, at so many dots an inch."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dots)
    return content.getvalue()


def median_and_range(axes: Axes, ratios: list[float], y: float, number: int, label: str) -> None:
    """The median of ratios and their range, in the look of the first, second, ... of a row."""
    colour = COLOURS[("RevGRU", "RevLSTM", "nn.LSTM")[min(number, 2)]]  # nn.GRU's is that of the goals
    axes.plot([min(ratios), max(ratios)], [y, y], color=colour, linewidth=1.2)
    axes.plot([median(ratios)], [y], MARKERS[number % len(MARKERS)], label=label, color=colour)


def goal_bar(axes: Axes, ratio: float, y: float, label: str, *, width: float = 3.0, height: float = 0.76) -> None:
    """A bar across the row, where the ratio would meet a goal."""
    ends = [y - height / 2, y + height / 2]
    axes.plot([ratio] * 2, ends, color=COLOURS["nn.GRU"], linewidth=width, label=label)


def ticks(axis: Any) -> None:
    """Plain numbers on a logarithmic axis, more of them where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 8 * low else (1, 1.25, 1.5, 2, 3, 4, 5, 6, 8)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def legend(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, with the labels of one of them, each once."""
    handles, labels = axes.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    figure.legend(list(named.values()), list(named), loc="outside right center")
