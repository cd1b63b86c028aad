"""Where a translation looked: its words down, the source's across, darker the more."""

from __future__ import annotations

import io
from collections.abc import Sequence

from torch import Tensor

INCH_A_WORD = 0.32


def plot(source: Sequence[str], target: Sequence[str], attention: Tensor) -> bytes:
    """A PNG of attention (T, S) of target words to source words."""
    from matplotlib.figure import Figure

    size = (2.0 + INCH_A_WORD * len(source), 1.6 + INCH_A_WORD * len(target))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(attention.numpy(), cmap="Greys", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(
        range(len(source)), [literal(word) for word in source], rotation=60, ha="left", rotation_mode="anchor"
    )
    axes.set_yticks(range(len(target)), [literal(word) for word in target])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for edge in axes.spines.values():
        edge.set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def literal(word: str) -> str:
    """A word as it stands, no mathematics."""
    return word.replace("$", r"\$")
