"""A day of ECG is the record over and over with noise, and one gradient over it takes little."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.day import main, signal
from revtune.program.data.heart import heart
from tests.tiny_signals import write_heart

pytest.importorskip("wfdb", reason="wfdb is not installed")


def test_a_day_is_the_record_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_heart(tmp_path)
    monkeypatch.setattr("benchmarks.day.BLOCK", 1_500)
    x, y = signal(found := heart("100", tmp_path), 4_500)
    noise = x[:, 0, 0] - found.samples.repeat(3)[:4_500]
    assert x.dtype == torch.int16 and 1 < noise.float().std() < 3 and not torch.equal(noise[:2_000], noise[2_000:4_000])
    assert torch.equal(y[:2_000], y[2_000:4_000]) and y[136] == 1 and y.float().mean() < 0.1


def test_the_figures_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_heart(tmp_path)
    monkeypatch.setattr("benchmarks.day.keep_to", lambda threads: None)
    main(["--data", str(tmp_path), "--hours", "0.02", "--out", str(tmp_path / "new" / "day.json")])
    assert "25,920 steps in one gradient" in capsys.readouterr().out
    figures = json.loads((tmp_path / "new" / "day.json").read_text())
    assert figures["steps"] == 25_920 and 0 < figures["loss"] < 2 and 0 < figures["peak"] < 50e6
    assert figures["inputs"] == 51_840 and figures["targets"] == 25_920 and figures["gradient_norm"] > 0
