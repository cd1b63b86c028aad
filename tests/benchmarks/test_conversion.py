"""The benchmark of conversions runs."""

import pytest

from benchmarks.conversion import main


def test_it_prints_the_medians(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--rounds", "2", "--width", "16", "--layers", "2", "--words", "50"])
    assert capsys.readouterr().out.startswith("self_tuning 0.")
