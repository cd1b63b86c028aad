"""The benchmark of what tuning costs: who competes, what is compared, and what tables, goals and plot make of it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from revtune.program.bench import tuning, tuning_results, worker
from revtune.program.bench.tuning import TuningJob, remembered, timed
from revtune.program.bench.tuning_cases import NETS, TUNED, Measure, StepKind, TuningCase, case_of, goal
from revtune.program.bench.tuning_results import memories, times
from revtune.program.bench.tuning_steps import steps_of, task_of
from revtune.program.bench.worker import Record
from revtune.program.cli.main import main
from revtune.program.errors import Problem
from revtune.program.recipes import mnist
from revtune.program.tasks.plain_learner import PlainLearner
from revtune.program.tasks.tuned_learner import TunedLearner
from revtune.tuning.responses.responding import Responding

SMALL = (
    TuningCase(net="mnist", width=4, batch=3),
    TuningCase(net="fashion", width=2, batch=3),
    TuningCase(net="cifar10", width=2, batch=3),
    TuningCase(net="ptb_lstm", width=4, batch=3, steps=5, tokens=7),
)
WIDE = TuningCase(net="mnist", width=800, batch=8)


def time_record(case: TuningCase, threads: int = 1, **ratios: float) -> Record:
    """Two rounds of equal ratios; the plain step takes 1 and 2 seconds."""
    taken = {"plain": 1.0, **{step: ratios.get(step[:3], 1.25) for step in TUNED}}
    seconds = {step: [one, 2 * one] for step, one in taken.items()}
    return {**dataclasses.asdict(case), "threads": threads, "repeats": 1, "seconds": seconds}


def memory_record(case: TuningCase) -> Record:
    needed = {"plain": 10**6, **{step: 10**6 * (2 + place) for place, step in enumerate(TUNED)}}
    return {**dataclasses.asdict(case), "threads": 1, "bytes": needed}


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.net)
def test_each_competitor_takes_whole_steps(case: TuningCase) -> None:
    steps = steps_of(case)
    assert [*steps] == ["plain", *TUNED]
    for step in steps.values():
        step()
        step()


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.net)
def test_plain_and_tuned_networks_are_the_same_function(case: TuningCase) -> None:
    """Of as many weights: the plain one has no response and reads numbers."""
    task = task_of(case)
    batch = task.train_batch(0)
    torch.manual_seed(task.study.seed)
    plain = PlainLearner(task).model.eval()
    tuned = TunedLearner(task, "delta").model.eval()
    assert not any(isinstance(module, Responding) for module in plain.modules())
    own = {name: p for name, p in tuned.named_parameters() if "response" not in name and "hyper" not in name}
    plain.load_state_dict(own, strict=False)
    assert own.keys() == dict(plain.named_parameters()).keys()
    found = [task.predict(net, batch, *([None] if task.carry else [])) for net in (plain, tuned)]
    for one, other in zip(*map(leaves, found), strict=True):
        torch.testing.assert_close(one, other)


def leaves(tree: Any) -> list[torch.Tensor]:
    return [tree] if isinstance(tree, torch.Tensor) else [leaf for one in tree for leaf in leaves(one)]


def test_a_readout_tied_to_the_embedding_stays_plain() -> None:
    model: Any = TunedLearner(task_of(SMALL[3]), "stn").model
    assert "tied" in model.conversion.left["readout"]
    assert model.conversion.replaced.keys() >= {"lower", "upper", "words.embedding"}


def test_the_goals_are_those_agreed_and_all_are_measured() -> None:
    def told(measure: Measure, net: Any) -> list[str]:
        steps: tuple[StepKind, ...] = TUNED
        return [str(goal(measure, net, step) or "") for step in steps]

    for net in ("mnist", "fashion", "cifar10"):
        assert told("time", net) == ["2.10", "3.00", "1.50", "1.50"]
        assert told("memory", net) == ["2.20"] * 4
    assert told("time", "ptb_lstm") == ["1.40", "", "", ""] and told("memory", "ptb_lstm") == [""] * 4
    assert [case_of(net).net for net in NETS] == [*NETS]
    assert dataclasses.astuple(case_of("ptb_lstm")) == ("ptb_lstm", 200, 40, 70, 10_000, "lstm")
    assert dataclasses.astuple(case_of("mnist")) == ("mnist", mnist.study().width, 64, 0, 0, "lstm")


def test_ratios_are_to_the_plain_step_of_the_same_round() -> None:
    found = [*times([time_record(SMALL[0], STN=2.5, Del=2.75)])]
    assert [one.ratios for one in found] == [[2.5, 2.5], [2.75, 2.75], [2.5, 2.5], [2.75, 2.75]]
    assert [one.goal_and_verdict for one in found] == ["2.10 missed", "3.00 met", "1.50 missed", "1.50 missed"]
    assert [one.ratios for one in memories([memory_record(SMALL[0])])] == [[2.0], [3.0], [4.0], [5.0]]


@pytest.mark.slow
def test_times_and_memory_are_measured_in_processes_of_their_own() -> None:
    job = TuningJob(cases=SMALL[:1], threads=1, rounds=2, turn=1e-9)
    (record,) = timed(job)
    assert TuningCase.of(record) == SMALL[0] and record["threads"] == 1
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in record["seconds"].values())
    step: StepKind = "STN"
    memory = worker.outcome("revtune.program.bench.tuning", TuningJob(cases=(WIDE,), threads=1, step=step).text())
    gradients = 4 * 2 * (785 * 800 + 801 * 800)
    assert gradients < memory["bytes"] < 2 * gradients


def test_a_worker_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = TuningCase(net="mnist", width=-1, batch=3)
    with pytest.raises(Problem, match=r"MLP \(mnist\), width -1, B=3 could not be measured: exit 1: RuntimeError: "):
        next(timed(TuningJob(cases=(broken,), threads=1)))
    monkeypatch.setattr(worker, "outcome", lambda module, job: {"error": "exit 1: no memory"})
    with pytest.raises(Problem, match=r"memory of MLP .*, B=3, plain, could not be measured: exit 1: no mem"):
        remembered(broken, 1)


@pytest.mark.parametrize(("size", "asked"), [(tuning.LITTLE - 10, 9), (tuning.LITTLE + 10, 3)])
def test_little_memory_is_the_median_of_more_processes(size: int, asked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter(range(5 * asked))
    monkeypatch.setattr(worker, "outcome", lambda module, job: {"bytes": size + next(told) % asked})
    needed = remembered(WIDE, 1)["bytes"]
    assert set(needed.values()) == {size + asked // 2} and next(told, None) is None


def test_jobs_survive_the_command_line() -> None:
    job = TuningJob(cases=SMALL, threads=2, rounds=9, turn=0.01, step="Delta-STN")
    assert TuningJob.of(job.text()) == job


@pytest.mark.parametrize("markdown", [False, True])
def test_the_command_prints_tables_and_writes_figures(
    markdown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning, "timed", lambda job: (time_record(case, job.threads) for case in job.cases))
    monkeypatch.setattr(tuning, "remembered", lambda case, threads: memory_record(case))
    monkeypatch.setattr("revtune.program.bench.measuring.processors", lambda: 2)
    out = tmp_path / "new" / "tuning.json"
    words = ["--markdown"] if markdown else []
    words += ["--nets", "mnist", "ptb_lstm", "--threads", "1", "2", "--out", str(out)]
    assert main(["bench", "tuning", *words]) == 0
    told = capsys.readouterr().out
    label = "MLP (mnist), width 300, B=64"
    assert (f"| {label}: Delta-STN | 1.25 | 1.25-1.25 | 3.00 met |" in told) == markdown
    assert (f"| {label}: Delta-STN | 1.0 | 3.00 | 2.20 missed |" in told) == markdown
    assert "Goals: 11 of 14 met." in told
    written = json.loads(out.read_text())
    assert [(one["net"], one["threads"]) for one in written["times"]] == [
        ("mnist", 1), ("ptb_lstm", 1), ("mnist", 2), ("ptb_lstm", 2)
    ]  # fmt: skip
    assert [one["net"] for one in written["memories"]] == ["mnist", "ptb_lstm"]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_bears_one_thread_count_and_ratios_far_apart() -> None:
    found = [time_record(case, STN=one) for case, one in zip(SMALL, (0.01, 1, 9, 300), strict=True)]
    assert tuning_results.goals(found, [memory_record(case) for case in SMALL]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--nets"], "--nets must be some of mnist fashion cifar10 ptb_lstm, got none"),
        (["--threads", "0"], "--threads must be from 1 to "),
        (["--rounds", "6"], "--rounds must be at least 7 for a median to mean something, got 6"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "tuning", *words]) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1
