"""The benchmark of products with fewer bits trains each way."""

from pathlib import Path

import pytest

from benchmarks.lowered import WAYS, main
from tests.tiny_runs import write_sums


def test_each_way_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ptb").mkdir()
    for part in ("train", "valid", "test"):
        write_sums(tmp_path / f"ptb/ptb.{part}.txt")
    losses = main(["--data", str(tmp_path), "--steps", "3", "--seeds", "1"])
    assert set(losses) == set(WAYS) and len({loss for (loss,) in losses.values()}) == len(WAYS)
    assert all(0 < loss < 6 for (loss,) in losses.values())
    assert "| readout in bfloat16 |" in capsys.readouterr().out
