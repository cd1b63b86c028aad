"""The check for GPUs runs without one at tiny shapes, where it finds the CPU kernel's bits too."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_parts import DRY, PARTS, REAL, Case, Row, Sizes, goal
from tests import interpreted


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")
def test_every_part_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    interpreted.prepare()
    monkeypatch.setenv("TRITON_INTERPRET", "")  # so that what main sets is gone afterwards
    out = tmp_path / "found.json"
    assert gpu_check.main(["--dry", "--seconds", "3000", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert {row["part"] for row in found["rows"]} == set(PARTS)
    bits = [row["figure"] for row in found["rows"] if row["part"] in ("the CPU kernel's bits", "repeats")]
    assert bits.count(True) == len(bits) - 1 == 16  # beside them, that nothing is captured here
    told = capsys.readouterr().out
    assert "| processes: gradients of two processes by gloo, relatively |" in told and "nothing failed" in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main([])
    assert "no NVIDIA GPU is here; --dry runs tiny shapes" in capsys.readouterr().err


def failing() -> list[Row]:
    raise RuntimeError("oh\nat line 1")


def cases(sizes: Sizes) -> Iterator[Case]:
    yield Case("one", failing)
    yield Case("two", lambda: [Row("two", 2.5, "us", goal=3.0), Row("three", 3.5, "us", goal=3.0)])
    yield Case("four", lambda: [Row("four", False), Row("five", True), Row("six", "none")])


def test_a_case_that_fails_is_a_row_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "PARTS", {"part": cases})
    monkeypatch.setattr(gpu_check, "interpret", lambda: None)
    monkeypatch.setattr(gpu_check, "machine", lambda device: {"GPU": "none"})
    out = tmp_path / "found.json"
    assert gpu_check.main(["--dry", "--out", str(out)]) == 1
    verdicts = {row["what"]: row["verdict"] for row in json.loads(out.read_text())["rows"]}
    assert verdicts == {
        "one": "FAILED", "two": "reached", "three": "missed", "four": "NOT SO", "five": "so", "six": "",
    }  # fmt: skip
    told = capsys.readouterr().out
    assert "| part: one | RuntimeError: oh |  | FAILED |" in told and "| part: two | 2.5 us | 3 us | reached |" in told
    assert told.endswith("FAILED: one; four\n")


def test_when_time_is_up_no_case_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "PARTS", {"part": cases})
    found = gpu_check.run(DRY, seconds=-1)
    assert [row["figure"] for row in found.rows] == ["not begun: time is up"] * 3
    assert found.failed == ["one", "two", "four"]


def test_goals_are_those_of_shapes_that_are_measured() -> None:
    """A shape that is changed in one place would leave its goal behind."""
    goals = [goal(name, shape, precision) for name in ("RevGRU", "RevLSTM") for shape in REAL.layers
             for precision in ("ieee", "tf32")]  # fmt: skip
    assert sorted(most for most in goals if most is not None) == [1.0, 1.0, 1.5, 2.0]
    assert len(REAL.layers) == 9
