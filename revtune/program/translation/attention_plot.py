"""Where a translation looked: its words down, the source's across, darker the more."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

from revtune.program import figures

INCH_A_WORD, INCH_A_LETTER = 0.32, 0.09
"""Room for labels in matplotlib's usual size."""

LONGEST_LABEL = 30
"""Characters of a word that are written; the start of a longer one."""


def plot(source: Sequence[str], target: Sequence[str], attention: Tensor) -> bytes:
    """A PNG of attention (T, S) of target words to source words."""
    across, down = [literal(word) for word in source], [literal(word) for word in target]
    above, left = (0.5 + INCH_A_LETTER * max(map(len, words)) for words in (across, down))
    size = (left + above / 2 + INCH_A_WORD * len(across), above + INCH_A_WORD * len(down))
    figure = figures.blank(*size)
    axes = figure.add_subplot()
    axes.imshow(attention.numpy(), cmap="Greys", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(across)), across, rotation=60, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(down)), down)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for edge in axes.spines.values():
        edge.set_visible(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # what the font lacks is drawn as a box
        return figures.png(figure, dots=150)


def literal(word: str) -> str:
    """A word with what matplotlib would read as mathematics escaped, and cut if it is very long."""
    return (word if len(word) <= LONGEST_LABEL else f"{word[: LONGEST_LABEL - 1]}…").replace("$", r"\$")
