"""The benchmark of faults: whatever happens to a run, it goes on to the same bits or is refused."""

import random
from pathlib import Path

import pytest

from benchmarks.faults import Faults, main
from revtune.program.language import trainer


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    return Faults(tmp_path, random.Random(0))


@pytest.mark.slow
def test_bits_and_disks_end_well(faults: Faults) -> None:
    found = [faults.outcome(fault) for fault in (faults.flipped, faults.full) for _ in range(4)]
    assert set(found) == {"same", "refused"}


def test_what_is_not_the_same_is_wrong(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "wanted", {})
    assert faults.outcome(faults.stopped) == "wrong"
    monkeypatch.setattr(trainer, "resume", lambda *_: 1 / 0)
    assert faults.outcome(faults.stopped) == "wrong"


@pytest.mark.slow
def test_it_prints_a_line_for_each_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tries", "1"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| killed", "| flipped bit", "| full disk"]
