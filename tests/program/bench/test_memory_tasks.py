"""The table of tasks: its cases, what they compute, where it goes on, its goals, cells and plot."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from revtune.program.bench import memory_tasks, worker
from revtune.program.bench.contestants import Contestant
from revtune.program.bench.memory_tasks import (
    PART,
    PROCESSES,
    TaskJob,
    measure,
    net_of,
    plan,
    step,
    work,
)
from revtune.program.bench.memory_tasks_results import apart, at, cell, goals, plot, row
from revtune.program.bench.real_tasks import TASKS, RealTask, drawn
from revtune.program.bench.worker import Record
from revtune.program.cli.main import main

SMALL = [dataclasses.replace(task, steps=24, rows=3, hidden=8, episode=task.episode and 6) for task in TASKS]
BY_NAME = {task.name: task for task in TASKS}


def test_the_shapes_are_those_of_real_work() -> None:
    shapes = [(task.steps, task.rows, task.hidden) for task in TASKS]
    assert shapes == [
        (784, 128, 128), (365, 256, 256), (8_760, 32, 128), (1_460, 50, 128), (4_096, 16, 128), (18_262, 16, 128),
        (4_273, 8, 200), (65_000, 1, 64), (650_000, 1, 64), (512, 2_048, 128),
    ]  # fmt: skip
    jobs = list(plan(1))
    assert len({job.key for job in jobs}) == len(jobs) == 10 * 8
    assert [job.key for job in jobs if job.is_estimated] == [
        "ECG, half an hour, nn.GRU", "ECG, half an hour, nn.LSTM",
        "recurrent policy, nn.GRU", "recurrent policy, nn.LSTM",
    ]  # fmt: skip


@pytest.mark.parametrize("task", SMALL, ids=lambda task: task.name)
@pytest.mark.parametrize("cell", ["RevGRU", "RevLSTM", "nn.GRU", "nn.LSTM"])
def test_checkpoints_change_no_gradient(task: RealTask, cell: str) -> None:
    ours = cell.startswith("Rev")
    torch.manual_seed(0)
    kept = net_of(Contestant(cell=cell), task)
    how: dict[str, Any] = {"checkpoint_every": "auto"} if ours else {"segments": True}
    other = net_of(Contestant(cell=cell, **how), task)
    other.load_state_dict(kept.state_dict())
    given = drawn(task, resets=ours)
    assert (given[2] is not None) == (ours and task.name == "recurrent policy")
    for net in (kept, other):
        step(net, given)
    for one, two in zip(kept.parameters(), other.parameters(), strict=True):
        assert one.grad is not None and one.grad.any()
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-5)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[TaskJob]:
    """The jobs that workers are given; each takes a megabyte more than the one before."""
    jobs: list[TaskJob] = []

    def outcome(module: str, job: str) -> Record:
        assert module == memory_tasks.__name__
        jobs.append(TaskJob.of(job))
        return {"bytes": len(jobs) * 10**6, "seconds": float(len(jobs)), "stored": 10**6, "chunk": 0}

    monkeypatch.setattr(worker, "outcome", outcome)
    return jobs


def test_the_middle_one_of_three_counts_for_ours(asked: list[TaskJob]) -> None:
    case = next(job for job in plan(1) if job.contestant.reversible)
    record = measure(case)
    assert len(asked) == PROCESSES == 3
    assert (record["bytes"], record["seconds"], record["range"]) == (2 * 10**6, 2.0, [10**6, 3 * 10**6])
    assert 0 < asked[0].warm_up <= case.task.steps


def test_what_is_too_large_is_estimated_from_a_part(asked: list[TaskJob]) -> None:
    case = next(job for job in plan(1) if job.is_estimated and job.task.name == "recurrent policy")
    record = measure(case)
    assert [job.task.steps for job in asked] == [512 // PART] and asked[0].warm_up <= 64
    assert (record["bytes"], record["seconds"], record["estimate"]) == (PART * 10**6, PART, True)
    assert record["task"]["steps"] == 512 and cell(record) == "8.0*, 8.0 s"


def test_it_goes_on_where_the_file_ends(
    asked: list[TaskJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory_tasks, "TASKS", TASKS[:1])
    command = ["bench", "memory", "--tasks", "--markdown", "--out", str(out := tmp_path / "tasks.json")]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "| sequential MNIST | 784, 128, 1, 128 | 1.0, 1.0 s | 2.0, 2.0 s | 4.0, 4.0 s | 7.0, 7.0 s | 0x |" in told
    assert "Goals: at most 15 MB" in told and "4 of 4 met." in told
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads(out.read_text())
    assert facts["threads"] == 1 and len(facts["records"]) == 8
    del facts["records"]["sequential MNIST, RevGRU"]
    out.write_text(json.dumps(facts))
    asked.clear()
    assert main(command) == 0
    assert {job.contestant.name for job in asked} == {"RevGRU"}


@pytest.mark.parametrize("option", [["--quick"], ["--long"], ["--ordinary"], ["--plot", "a.png"], ["--sweep"]])
def test_options_that_the_table_does_not_have(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "memory", "--tasks", *option]) == 2
    assert "has shapes and a plot of its own, and runs on the CPU; leave --" in capsys.readouterr().err


def record(name: str, megabytes: float, task: RealTask = TASKS[0], **more: Any) -> Record:
    facts = {"bytes": int(megabytes * 1e6), "seconds": 0.123, "stored": 2 * 10**6, "chunk": 3 * 10**6}
    return {"task": dataclasses.asdict(task), "name": name, **facts, **more}


@pytest.mark.parametrize(
    "ours, theirs, task, met",
    [
        (15.0, 601.0, "sequential MNIST", True),
        (15.1, 2000.0, "sequential MNIST", False),
        (8.0, 601.0, "recurrent policy", True),
        (8.1, 601.0, "recurrent policy", False),
        (8.0, 319.0, "recurrent policy", True),
    ],
)
def test_goals(ours: float, theirs: float, task: str, met: bool) -> None:
    group = [record("nn.GRU", theirs, BY_NAME[task]), record("RevGRU", ours, BY_NAME[task])]
    assert goals(group) == {"RevGRU": met}


def test_forty_times_less_is_asked_for_beyond_600_megabytes() -> None:
    assert goals([record("nn.GRU", 601), record("RevGRU", 15), record("RevLSTM", 15)]) == {
        "RevGRU": True, "RevLSTM": True
    }  # fmt: skip
    policy_task = BY_NAME["recurrent policy"]
    assert goals([record("nn.LSTM", 319, policy_task), record("RevLSTM", 8, policy_task)]) == {"RevLSTM": True}
    assert goals([record("nn.LSTM", 601, policy_task, stored=10**8), record("RevLSTM", 15.1, policy_task)]) == {
        "RevLSTM": False
    }  # fmt: skip


def test_rows_name_failures_and_what_is_not_there_yet() -> None:
    group = [record("nn.GRU", 600), {**record("nn.GRU, checkpointed", 0), "error": "exit -9: no word"}]
    group.append(record("RevGRU", 6.0, seconds=12.3))
    assert row(group, "RevGRU", "nn.GRU") == (
        "sequential MNIST", "784, 128, 1, 128", "600.0, 0.12 s", "exit -9: no word", "6.0, 12 s", "", "100x"
    )  # fmt: skip


def test_the_plot_has_a_point_for_each_task() -> None:
    records = {str(number): record("RevGRU", 5.0, task) for number, task in enumerate(TASKS)}
    records["failed"] = {**record("nn.GRU", 1.0), "error": "exit 1"}
    assert plot(records).startswith(b"\x89PNG")
    assert [steps for steps, _ in at(records, "RevGRU")] == [task.steps for task in TASKS]


def test_a_worker_takes_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak_of(step: Callable[[], object], device: object) -> int:
        step()
        return 10**6

    monkeypatch.setattr(memory_tasks, "peak_of", peak_of)
    monkeypatch.setattr(memory_tasks, "keep_to", lambda threads: None)
    for cell_name in ("RevGRU", "nn.LSTM"):
        job = TaskJob(task=SMALL[-1], contestant=Contestant(cell=cell_name), warm_up=6, threads=1)
        found = work(job)
        assert 0 < found["bytes"] < 10**6 and found["seconds"] > 0 and found["inputs"] > 24 * 3 * 16 * 4
        assert ("stored" in found) == job.contestant.reversible


def test_names_of_nearly_one_length_stand_in_one_line() -> None:
    tops = [(4273, 500.0, "music"), (365, 1500.0, "daily"), (4096, 510.0, "speech"), (8760, 2200.0, "hourly")]
    assert apart(tops) == [
        (365, 1500.0, "daily"), (4096, 510.0, "speech; music"), (8760, 2200.0, "hourly"),
    ]  # fmt: skip
