"""Measurements read for a page."""

import math
from pathlib import Path
from typing import Any

import pytest

from revtune.program.report import metrics


def test_a_line_that_was_cut_off_is_left_out_and_told_of(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\nnonsense\n[1]\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo')
    lines, said = metrics.read(path)
    assert metrics.column(lines, "loss") == [(1, 2.0), (2, 1.5)]
    assert said.startswith("2 of 4 lines of metrics.jsonl are damaged and left out.") and "cut off" in said
    assert metrics.read(tmp_path / "none") == ([], "none is not there, so that no measurement can be shown.")


def test_what_is_no_finite_number_is_no_point() -> None:
    lines: list[Any] = [{"step": 1, "loss": "a"}, {"step": 2, "loss": math.nan}, {"step": 3}, {"step": 4, "loss": True}]
    assert metrics.column(lines, "loss") == []
    assert metrics.column([{"step": 1, "values": {"a": 2}}, {"step": 2, "values": 3}], "values", "a") == [(1, 2)]


def test_fewer_points_keep_ends_and_spikes() -> None:
    points = [(float(x), math.sin(x / 50)) for x in range(5000)]
    points[1234] = (1234.0, 9.0)
    kept = metrics.thinned(points, 100)
    assert len(kept) <= 100 and kept[0] == 0 and kept[-1] == 4999 and 1234 in kept
    assert metrics.thinned(points[:100], 100) == list(range(100))


def test_a_running_mean_begins_at_the_first_value() -> None:
    means = metrics.smoothed([(1, 4.0), (2, 4.0), (3, 2.0)])
    assert [mean for _, mean in means[:2]] == pytest.approx([4.0, 4.0]) and 2 < means[2][1] < 4


def test_seconds_are_known_at_all_points_or_at_none() -> None:
    assert metrics.later([(1, 0.0), (2, 0.0)], {1: 0.5, 2: 1.5}) == [0.5, 1.5]
    assert metrics.later([(1, 0.0), (2, 0.0)], {1: 0.5}) == []
