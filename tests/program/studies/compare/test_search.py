"""Searches: what their clock counts, and what of their measurements is gone on from."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from revtune.program.errors import Problem
from revtune.program.recipes import find
from revtune.program.studies.compare.search import Search
from revtune.program.tasks.task import SEARCHERS, Searcher, Task
from tests.tiny_contests import Seconds, quiet, tiny_study


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr("revtune.program.studies.compare.search.Clock", Seconds)
    found: Task = find("mnist").task(tiny_study(tmp_path / "data"))
    return found


def learnt(task: Task, folder: Path, budget: float) -> Search:
    """A random search of trials of four updates."""
    folder.mkdir(exist_ok=True)
    search = Search(task, "random", folder, 4, "")
    search.learn(budget, "wall", quiet())
    search.close()
    return search


def test_only_learning_takes_time(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    clocks: list[Seconds] = []

    def noted(kind: Any, name: str) -> None:
        original = getattr(kind, name)

        def call(*args: Any, **more: Any) -> Any:
            seen.append((name, clocks[-1].running))
            return original(*args, **more)

        monkeypatch.setattr(kind, name, call)

    class Noted(Seconds):
        def __init__(self, wall: float = 0.0, cpu: float = 0.0) -> None:
            super().__init__(wall, cpu)
            clocks.append(self)

    monkeypatch.setattr("revtune.program.studies.compare.search.Clock", Noted)
    for kind, name in (
        (optuna.Study, "ask"), (optuna.Study, "tell"), (optuna.Trial, "report"), (optuna.Trial, "should_prune"),
        (Search, "_exhausted"), (Search, "best"), (type(task), "net"), (type(task), "train_batch"),
    ):  # fmt: skip
        noted(kind, name)
    learnt(task, tmp_path / "search", 12.0)
    assert {name for name, running in seen if running} == {"train_batch"}
    assert {name for name, running in seen if not running} == {
        "ask", "tell", "report", "should_prune", "_exhausted", "best", "net"
    }  # fmt: skip


def test_its_time_ends_with_its_last_trial(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = learnt(task, tmp_path / "search", 12.0)
    evaluate = type(task).evaluate

    def slow(*args: Any) -> Any:
        search.clock.read("wall")
        return evaluate(*args)

    monkeypatch.setattr(type(task), "evaluate", slow)
    before = search.clock.wall
    assert search.result()["wall"] == before


def test_a_trial_of_half_a_record_did_not_end(task: Task, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    ended = len(learnt(task, folder, 12.0).ended())
    lines = (folder / "journal.log").read_bytes().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if b'"wall"' in line)
    (folder / "journal.log").write_bytes(b"".join(lines[: last + 1]))
    search = Search(task, "random", folder, 4, "")
    search.close()
    assert len(search.ended()) == ended - 1
    search = learnt(task, folder, 24.0)
    trials = [line.split(b",")[0] for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    assert trials == sorted(trials) and len(search.ended()) > ended


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda lines: [b"\0\0\n", *lines[1:]], "metrics.jsonl is damaged in line 1: expected a JSON object"),
        (lambda lines: [b"{}\n", *lines[1:]], r"metrics.jsonl is damaged in line 1: expected trial \(int\)"),
        (lambda lines: lines[2:], "metrics.jsonl is damaged: it has no line of trial 0, whose loss is in journal.log"),
    ],
)
def test_damaged_measurements_are_told(edit: Any, told: str, task: Task, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    learnt(task, folder, 12.0)
    path = folder / "metrics.jsonl"
    path.write_bytes(b"".join(edit(path.read_bytes().splitlines(keepends=True))))
    for _ in range(2):
        with pytest.raises(Problem, match=told):
            Search(task, "random", folder, 4, "")


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_the_first_trial_is_at_the_starting_values_until_it_has_ended(
    searcher: Searcher, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search() -> Search:
        return Search(task, searcher, tmp_path, 4, "")

    start, found = {"input_drop": 0.05, "drop1": 0.05, "drop2": 0.05}, search()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Search, "_end", raise_interrupt)
        found.learn(30.0, "wall", quiet())
    found.close()
    found = search()
    found.learn(30.0, "wall", quiet())
    found.close()
    values = [trial.params for trial in found.ended()]
    assert values[0] == start and start not in values[1:]


def raise_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
