"""The benchmark of a stream's checks runs, and takes each of them away."""

import pytest

from benchmarks.watching import CHECKS, Shape, main, unwatched
from revtune.reversible.streams.surroundings import Surroundings


def test_it_prints_a_ratio_for_each_net(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--rounds", "2"], [Shape(steps=6, hidden=8, words=10, rows=2, goal=1.0)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["ratio", "RevGRU", "RevLSTM"]


def test_each_check_is_one() -> None:
    checks = [getattr(Surroundings, name) for name in CHECKS]
    with unwatched():
        assert not any(getattr(Surroundings, name) in checks for name in CHECKS)
    assert [getattr(Surroundings, name) for name in CHECKS] == checks
