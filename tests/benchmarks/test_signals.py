"""Contests of signals: who competes, truncated to which memory, for how long, and what is told."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import signals
from benchmarks.signals import CONTESTS, PROBE, WAYS, SignalJob, fitting, main, measure, plan, rows, task_of, work
from revtune.program.bench.worker import Record
from tests.tiny_signals import write_signals

for needed in ("wfdb", "soundfile", "scipy"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

JOB = SignalJob(contest="copy", data="", model="gru", how="truncated", seconds=1.0, threads=1)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[SignalJob]:
    """What workers are asked; a step takes a MB a step of gradient and two more, with ours a tenth."""
    jobs: list[SignalJob] = []

    def answer(job: SignalJob) -> Record:
        jobs.append(job)
        if job.seconds:
            return {"updates": 5, "best": 4, "test": {"loss": 0.5, "accuracy": 0.25}, "valid": {}}
        taken = 2 * 10**6 + (job.truncate or 120) * 10**6
        return {"memory": taken // 10 if job.model.startswith("rev") else taken}

    monkeypatch.setattr(signals, "asked", answer)
    return jobs


def test_a_truncated_net_takes_no_more_than_ours(asked: list[SignalJob]) -> None:
    record = measure(JOB, lambda job: 12 * 10**6)
    assert (record["truncate"], record["memory"], record["updates"]) == (5, 7 * 10**6, 5)
    assert [job.truncate for job in asked] == [PROBE, 11, 5, 5, 5] and asked[-1].seconds == 1.0
    assert fitting(dataclasses.replace(JOB, most=10**6)) is None
    assert measure(JOB, lambda job: 10**6)["error"] == "no truncated step takes 1.0 MB or less"


def test_all_ways_compete_and_a_call_goes_on(
    asked: list[SignalJob], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", str(tmp_path), "--only", "copy", "--seconds", "2", "--out", str(out := tmp_path / "new.json")]
    main(command)
    told = capsys.readouterr().out
    assert "| copy, 2 s each | MB a step | updates | test accuracy |" in told
    assert "| RevGRU, whole | 12.2 | 5 | 25.00% |" in told
    assert "| nn.GRU, truncated to 5 steps | 7.0 | 5 | 25.00% |" in told
    assert len(json.loads(out.read_text())["records"]) == sum(map(len, WAYS.values())) == 8
    asked.clear()
    main(command)
    assert not asked


def test_failures_are_told() -> None:
    assert [*rows({"ecg, nn.GRU, whole": {"model": "gru", "how": "whole", "error": "exit 1"}}, "ecg")] == [
        ("nn.GRU, whole", "exit 1", "", "")
    ]  # fmt: skip


@pytest.mark.parametrize("contest", CONTESTS)
def test_a_worker_learns_for_its_time(contest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_signals(tmp_path)
    sizes: dict[str, dict[str, Any]] = {
        "ecg": {"length": 100}, "music": {"pieces": "jsb"}, "digits": {"frame": 64}, "copy": {"length": 5},
        "smnist": {"images": 40}, "psmnist": {"images": 40}, "adding": {"length": 8},
        "long adding": {"length": 120, "tested": 8}, "long copy": {"length": 120, "tested": 8},
    }  # fmt: skip
    recipe, changes = CONTESTS[contest]
    changes = {**changes, "hidden": 6, "batch": 2, "valid_every": 1, **sizes[contest]}
    monkeypatch.setitem(CONTESTS, contest, (recipe, changes))
    monkeypatch.setattr(signals, "keep_to", lambda threads: None)
    jobs = [job for job in plan([contest], tmp_path, 0.01, 1) if job.model == "lstm"]
    task = task_of(dataclasses.replace(jobs[0], truncate=3))
    assert (task.study.truncate, task.study.hidden, task.study.learning.batch) == (3, 6, 2)
    found = work(dataclasses.replace(jobs[0], truncate=3))
    assert found["updates"] >= 1 and 0 < found["test"]["loss"] < 100
    assert {"memory"} == work(dataclasses.replace(jobs[1], seconds=0.0)).keys()
