"""The picture of an attention."""

from __future__ import annotations

import struct
import warnings

import pytest
import torch

pytest.importorskip("matplotlib")

from revtune.program.translation.attention_plot import LONGEST_LABEL, literal, plot


def test_words_keep_their_dollars_and_long_ones_their_start() -> None:
    """No mathematics, and no picture as wide as a word of 20,000 letters."""
    assert literal("$5") == r"\$5"
    assert literal("x" * LONGEST_LABEL) == "x" * LONGEST_LABEL
    assert literal("x" * 20_000) == "x" * (LONGEST_LABEL - 1) + "…"


def test_any_words_make_a_picture_that_can_be_looked_at() -> None:
    """Emoji are boxes, without a warning; margins have room for labels, however long a word is."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = plot(["the", "🐶", "x" * 20_000], ["der", "$"], torch.full((2, 3), 1 / 3))
    assert picture.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", picture[16:24])
    assert 300 < width < 700 and 300 < height < 700
