"""Searches whose trials run in several processes, or are kept in a storage of Optuna's own."""

import dataclasses
import json
import os
import signal
from contextlib import closing
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from revtune.program.errors import Problem
from revtune.program.recipes import find
from revtune.program.runs.clock import Clock
from revtune.program.runs.seals import Seals
from revtune.program.studies.compare import trials
from revtune.program.studies.compare.compare import check_options
from revtune.program.studies.compare.contest import Options
from revtune.program.studies.compare.search import Search
from revtune.program.studies.compare.workers import Workers
from revtune.program.tasks.plain_learner import PlainLearner
from revtune.program.tasks.task import Task
from revtune.program.tuning import Tuning
from tests.tiny_contests import quiet, tiny_study


@pytest.fixture
def task(tmp_path: Path) -> Task:
    made: Task = find("mnist").task(tiny_study(tmp_path / "data"))
    return made


def search(task: Task, folder: Path, url: str | None = None, searcher: Any = "asha") -> Search:
    folder.mkdir(parents=True, exist_ok=True)
    return Search(task, searcher, folder, 12, "again", Seals({"config.json": "digest"}), url)


def trials_of(url: Any, name: str) -> list[optuna.trial.FrozenTrial]:
    """As Optuna's dashboard reads them."""
    return optuna.load_study(study_name=name, storage=url).get_trials()


@pytest.mark.slow
@pytest.mark.parametrize("by_url", [False, True])
def test_two_workers_share_the_time_of_a_search(by_url: bool, task: Task, tmp_path: Path) -> None:
    folder, url = tmp_path / "contest" / "seed-1" / "asha", f"sqlite:///{tmp_path}/trials.db" if by_url else None
    found = search(task, folder, url)
    found.learn_by(2, 6.0, "cpu", quiet())  # the first steps of each take a second
    result = found.result(budget=6.0)
    found.close()
    ended, storage = (
        found.ended(),
        url or optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "journal.log"))),
    )
    read = trials_of(storage, json.loads((folder / "study.json").read_text())["study"] if by_url else "asha")
    assert len(ended) == len(read) > 2 and {trial.state for trial in read} <= set(TrialState) - {TrialState.RUNNING}
    assert len({json.dumps(trial.params) for trial in read}) == len(read), "two trials drew the same values"
    assert 0 < result["cpu"] < 6.0 + 2.0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    together = [number for number, _ in groupby(line["trial"] for line in lines)]
    assert len(together) == len(set(together)), "a trial's lines stand apart"
    assert [line["cpu"] for line in lines] == sorted(line["cpu"] for line in lines)
    best = min(lines, key=lambda line: float(line["loss"]))
    assert result["trial"] == best["trial"] and result["valid"]["loss"] == pytest.approx(best["loss"])
    assert [path.name for path in folder.glob("trial-*")] == [f"trial-{best['trial']}.safetensors"]
    again = search(task, folder, url)  # its seals and lines fit
    assert [trial.number for trial in again.ended()] == [trial.number for trial in ended]
    assert again.clock.now()["cpu"] == pytest.approx(result["cpu"], abs=0.1)
    again.close()
    with pytest.raises(Problem, match="give its URL by --storage" if by_url else "leave --storage out"):
        search(task, folder, None if by_url else f"sqlite:///{tmp_path}/other.db")


@pytest.mark.slow
def test_a_search_whose_worker_dies_says_so_and_goes_on(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run = tmp_path / "contest" / "seed-1" / "asha", Workers.run
    found = search(task, folder)

    def killing(team: Workers, *arguments: Any) -> None:
        run(team, *arguments)
        processes = team._pool._processes
        os.kill(next(iter(processes)), signal.SIGKILL)

    monkeypatch.setattr(Workers, "run", killing)
    with closing(found), pytest.raises(Problem, match="a worker of the search has died; again goes on"):
        found.learn_by(2, 60.0, "cpu", quiet())
    monkeypatch.undo()
    again = search(task, folder)
    again.learn(again.clock.read("cpu") + 2.0, "cpu", quiet())
    assert len(again.ended()) >= 1
    again.close()


def test_a_workers_time_begins_with_its_first_step(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()

    class Noted(PlainLearner):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            told.append("built")

    monkeypatch.setattr(trials, "PlainLearner", Noted)

    def began() -> Clock:
        told.append("began")
        return Clock()

    monkeypatch.setattr(trials, "Clock", began)
    monkeypatch.setattr(trials, "_here", [SimpleNamespace(task=task, study=None, stop=None)])
    monkeypatch.setattr(trials, "Trial", lambda study, number: None)
    monkeypatch.setattr(trials, "learn", lambda *given: None)
    values = {name: hyper.initial for name, hyper in task.hypers().items()}
    trials.run(
        trials.Job(number=0, id=0, values=values, steps=1, seconds=9.0, clock="cpu", weights=tmp_path / "w", seals={})
    )
    assert told == ["built", "began"]


def test_what_cannot_be_is_refused(task: Task, tmp_path: Path) -> None:
    study: Any = task.study
    learning = dataclasses.replace(study.learning, schedule="cosine", steps=8, valid_every=4)
    ending_soon = dataclasses.replace(study, learning=learning, stn=Tuning(warmup=8, ratio=1))
    refused: list[tuple[dict[str, Any], str]] = [
        ({"workers": 0}, "--workers must be at least 1, got 0"),
        ({"workers": 2, "contestants": ("plain", "delta")}, "--workers is for the trials of searchers"),
        ({"storage": "sqlite://", "contestants": ("plain",)}, "--storage is for the trials of searchers"),
        ({"study": ending_soon, "contestants": ("plain", "stn")}, "--steps must be at least 9, the first at which"),
    ]
    for given, expected in refused:
        with pytest.raises(Problem, match=expected):
            check_options(Options(**{"study": task.study, **given}))
    with pytest.raises(Problem, match="--storage must be a URL that Optuna can keep trials at, but ArgumentError"):
        search(task, tmp_path / "a" / "b" / "c", "nowhere")
