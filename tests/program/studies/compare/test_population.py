"""Population based training: who takes after whom, that it goes on exactly, and what it refuses."""

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from revtune.errors import NonFiniteError
from revtune.program.cli.main import main
from revtune.program.errors import Problem
from revtune.program.recipes import find
from revtune.program.studies.compare import table as compare_table
from revtune.program.studies.compare.compare import run
from revtune.program.studies.compare.contest import Contest, Options
from revtune.program.studies.compare.population import Population, PopulationSettings, explored
from revtune.program.studies.compare.table import figures, verdicts
from revtune.program.tasks.image_task import ImageStudy
from revtune.program.tasks.plain_learner import PlainLearner
from revtune.program.tasks.task import Space, Task
from tests.tiny_contests import tiny_options, tiny_study

SMALL = PopulationSettings(members=3, interval=1)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    found: Task = find("mnist").task(tiny_study(tmp_path / "data"))
    return found


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options[ImageStudy]:
    monkeypatch.setattr(compare_table, "plot", lambda found: b"")
    options = tiny_options(tmp_path, monkeypatch)
    return dataclasses.replace(options, contestants=("pbt",), pbt=SMALL, budget=40.0)


def learnt(population: Population, updates: int) -> list[dict[str, Any]]:
    """The figures and values of each validation of so many updates, two for each."""
    found = []
    for _ in range(updates):
        population.step()
        if population.steps % 2 == 0:
            found.append({**population.validate(), "values": population.values()})
    return found


def test_the_worst_become_copies_of_the_best_at_values_near_theirs(task: Task) -> None:
    population = Population(task, SMALL)
    start = [member.values() for member in population.members]
    assert start[0] == {"input_drop": 0.05, "drop1": 0.05, "drop2": 0.05} and start[1] != start[2]
    learnt(population, 6)
    best, middle, worst = sorted(range(3), key=population.losses.__getitem__)
    before = [dict(member.model.state_dict()) for member in population.members]
    momenta = population.members[best].optimizer.state_dict()["state"]
    population.exchange()
    copy, source = population.members[worst], population.members[best]
    assert [population.members[one].values() for one in (best, middle)] == [start[best], start[middle]]
    for name, weight in copy.model.state_dict().items():
        assert torch.equal(weight, before[best][name]) and weight is not before[best][name]
    for number, state in copy.optimizer.state_dict()["state"].items():
        assert torch.equal(state["momentum_buffer"], momenta[number]["momentum_buffer"])
        assert state["momentum_buffer"] is not momenta[number]["momentum_buffer"]
    for name, value in copy.values().items():
        near = [times * source.values()[name] for times in (0.8, 1.2)]
        assert any(value == pytest.approx(min(one, 0.9)) for one in near)
    learnt(population, 6)
    assert copy.steps == source.steps == 4


def test_values_are_explored_within_their_spaces() -> None:
    draws = random.Random(1)

    def near(value: float, space: Space) -> set[float]:
        return {explored(value, space, draws) for _ in range(40)}

    assert near(0.5, Space(0.0, 0.9)) == {0.4, 0.6} and near(0.75, Space(0.0, 0.9)) == {0.6, 0.9}
    assert near(1, Space(0, 4, whole=True)) == {0, 2} and near(0, Space(0, 4, whole=True)) == {0, 1}
    assert near(20, Space(0, 24, whole=True)) == {16, 24}
    assert near(1e-3, Space(1e-3, 10.0, log=True)) == {1e-3, 1e-3 + 0.2 * 1e-3}


def test_it_goes_on_exactly_from_its_state(task: Task) -> None:
    whole = Population(task, SMALL)
    expected = learnt(whole, 26)
    assert len({json.dumps(one["values"]) for one in expected}) > 3  # some have taken after others
    halted = Population(task, SMALL)
    found = learnt(halted, 11)
    state = halted.state()
    again = Population(task, SMALL)
    torch.rand(3)
    again.restore(state)
    assert found + learnt(again, 15) == expected
    assert again.leading() == whole.leading() and again.progress == whole.progress


def test_the_best_of_all_is_kept(task: Task) -> None:
    population = Population(task, SMALL)
    found = learnt(population, 14)
    best = min(found, key=lambda one: float(one["loss"]))
    population.take_best()
    assert population.values() == best["values"] and population.progress.best == best["loss"]
    assert population.figures("valid")["loss"] == pytest.approx(best["loss"])


def test_a_member_that_fails_takes_after_another(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    population = Population(task, SMALL)

    def fail(*_: Any) -> float:
        raise NonFiniteError("no number")

    with monkeypatch.context() as patch:
        patch.setattr(population.members[0], "update", fail)
        found = learnt(population, 6)
    assert [one.get("member") for one in found] == [None, 1, 2] and population.losses[0] == math.inf
    found = learnt(population, 6)
    assert [one["member"] for one in found] == [0, 1, 2] and not population.failed
    for member in population.members:
        monkeypatch.setattr(member, "validate", fail)
    learnt(population, 6)
    with pytest.raises(NonFiniteError, match="each of the population's 3 members has failed"):
        population.step()


@pytest.fixture
def falling(tmp_path: Path) -> Task:
    """A task whose learning rate falls over 4 updates."""
    study = tiny_study(tmp_path / "data")
    learning = dataclasses.replace(study.learning, schedule="cosine", steps=4)
    found: Task = find("mnist").task(dataclasses.replace(study, learning=learning))
    return found


def test_a_member_that_has_failed_keeps_no_other_past_its_schedule(
    falling: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    population = Population(falling, SMALL)
    learnt(population, 6)

    def fail(*_: Any) -> float:
        raise NonFiniteError("no number")

    with monkeypatch.context() as patch:
        patch.setattr(PlainLearner, "update", fail)
        learnt(population, 2)
    ends = [population.past_its_schedule]
    learnt(population, 4)
    assert population.failed == [0] and [member.steps for member in population.members] == [2, 4, 4]
    ends.append(population.past_its_schedule)
    population.failed = [0, 1, 2]  # which the next round tells
    assert [*ends, population.past_its_schedule] == [False, True, False]


def test_a_member_past_its_schedule_stands_still(falling: Task) -> None:
    population = Population(falling, PopulationSettings(members=2, interval=3))
    figures = learnt(population, 10)
    assert [member.steps for member in population.members] == [4, 4] and population.past_its_schedule
    assert [one.get("member") for one in figures] == [0, 0, None, 1, 1]


def test_a_contest_has_its_figures_and_its_row(options: Options[ImageStudy]) -> None:
    options = dataclasses.replace(options, contestants=("stn", "pbt"))
    contest = Contest("mnist", options, run("mnist", options))
    result, lines = contest.result(1, "pbt") or {}, contest.validations(1, "pbt")
    assert result["valid"]["loss"] == min(one["loss"] for one in lines)
    assert result["values"] == next(one["values"] for one in lines if one["loss"] == result["valid"]["loss"])
    assert {one["member"] for one in lines} == {0, 1, 2} and result["steps"] > 18
    assert any(one["values"] == result["final_values"] for one in lines)
    rows = figures(contest)
    assert [row["contestant"] for row in rows["rows"]] == ["stn", "pbt"]
    told = verdicts(rows)
    assert any("PBT" in line for line in told) and any("best searcher's held-out loss" in line for line in told)
    assert json.loads((contest.folder / "config.json").read_text())["pbt"] == {"members": 3, "interval": 1}


def test_a_contest_that_was_killed_ends_as_a_whole_one(
    options: Options[ImageStudy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Contest("mnist", options, run("mnist", options))
    halted = dataclasses.replace(options, out=tmp_path / "halted")
    step = PlainLearner.step

    def killed(member: PlainLearner) -> float:
        if member.steps == 5:
            raise KeyboardInterrupt
        return step(member)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("revtune.program.tasks.loop.SAVE_SECONDS", -1.0)
        patch.setattr(PlainLearner, "step", killed)
        run("mnist", halted)
    again = Contest("mnist", halted, run("mnist", halted))
    first, second = (
        [{**one, "wall": 0.0} for one in contest.validations(1, "pbt")] for contest in (whole, again)
    )  # fmt: skip
    count = min(len(first), len(second))
    assert count > 8 and first[:count] == second[:count]


def test_a_contest_of_an_earlier_version_goes_on(options: Options[ImageStudy]) -> None:
    options = dataclasses.replace(options, contestants=("plain",), pbt=PopulationSettings())
    contest = Contest("mnist", options, run("mnist", options))
    assert "pbt" not in json.loads((contest.folder / "config.json").read_text())
    run("mnist", dataclasses.replace(options, contestants=("plain", "stn")))
    with pytest.raises(Problem, match="holds a contest with other settings"):
        run("mnist", dataclasses.replace(options, pbt=SMALL))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--pbt.members 1", "--pbt.members must be at least 2, as they take after one another, got 1"),
        ("--pbt.interval 0", "--pbt.interval must be at least 1, got 0"),
    ],
)
def test_what_no_population_can_be_is_told(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "mnist", *words.split()]) == 2
    assert told in capsys.readouterr().err
