"""The sweep of peaks: its cases, where it goes on, its tables, and a peak that a process of its own measures."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from revtune.program.bench import memory_sweep, worker
from revtune.program.bench.memory_sweep import WAYS, SweepJob, Way, plan, row
from revtune.program.bench.worker import Record
from revtune.program.cli.main import main

CASE = SweepJob(way="rewind_loss", net="RevGRU", steps=400, rows=16, units=64, threads=1)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[SweepJob]:
    """The jobs that workers are given; the second one fails."""
    jobs: list[SweepJob] = []

    def outcome(module: str, job: str) -> Record:
        assert module == memory_sweep.__name__
        jobs.append(SweepJob.of(job))
        return {"error": "exit 1: no"} if len(jobs) == 2 else {"peak": 2 * 10**6, "stored": 10**5, "bound": 4 * 10**6}

    monkeypatch.setattr(worker, "outcome", outcome)
    monkeypatch.setattr(memory_sweep, "STEPS", (10,))
    monkeypatch.setattr(memory_sweep, "ROWS", (1,))
    return jobs


def test_all_ways_meet_all_sizes_up_to_the_largest() -> None:
    jobs = list(plan(1))
    shapes = {(job.steps, job.rows, job.units) for job in jobs}
    assert len(jobs) == len(shapes) * 2 * len(WAYS) == len({job.key for job in jobs})
    assert {(100_000, 1, 1_100), (100, 256, 1_100), (10_000, 256, 16)} < shapes
    assert max(steps * rows * units for steps, rows, units in shapes) <= 3 * 10**8


def test_it_goes_on_where_the_file_ends(
    asked: list[SweepJob], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep.json"
    command = ["bench", "memory", "--sweep", "--markdown", "--out", str(out)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "| 10, 1, 16 | 2.0 | 0.10 | 4.0 | 0.50 |" in told and "| 10, 1, 16 | exit 1: no |" in told
    assert f"Within their bounds: {len(asked) - 1} of {len(asked)}." in told
    assert len(json.loads(out.read_text())["records"]) == len(asked)
    failed = asked[1]
    asked.clear()
    assert main(command) == 0
    assert asked == [failed]


OF_EARLIER_TORCH = '{"torch": "2.1.0", "threads": 1, "records": {}}'


@pytest.mark.parametrize("content", ['{"results": []}', '{"threads": 3, "records": {}}', OF_EARLIER_TORCH])
def test_a_file_of_something_else_is_left_alone(
    content: str, asked: list[SweepJob], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out := tmp_path / "memory.json").write_text(content)
    assert main(["bench", "memory", "--sweep", "--out", str(out)]) == 1
    told = capsys.readouterr().err
    assert f"{out} holds no sweep of memory with revtune " in told and "threads 1; name another file" in told
    assert out.read_text() == content and not asked


@pytest.mark.parametrize("option", [["--quick"], ["--long"], ["--ordinary"], ["--plot", "a.png"], ["--device", "cuda"]])
def test_options_that_a_sweep_does_not_have(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "memory", "--sweep", *option]) == 2
    said = capsys.readouterr().err
    assert "leave " in said or "no CUDA device" in said


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("net", memory_sweep.NETS)
def test_each_way_takes_its_step(way: Way, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def peak_of(step: Callable[[], object], device: object) -> int:
        step()
        return 10**6

    monkeypatch.setattr(memory_sweep, "peak_of", peak_of)
    monkeypatch.setattr(memory_sweep, "keep_to", lambda threads: None)
    found = memory_sweep.work(dataclasses.replace(CASE, way=way, net=net))
    assert 0 < found["peak"] < 10**6 and 0 < found["stored"] < found["bound"]


def test_a_case_is_a_row() -> None:
    record = dataclasses.asdict(CASE) | {"peak": 3 * 10**6, "stored": 10**4, "bound": 2 * 10**6}
    assert row(record) == ("400, 16, 64", "3.0", "0.01", "2.0", "1.50")
