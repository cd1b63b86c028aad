"""A contest's folder: whose results count, what is begun anew, who may work in it, and damage."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from revtune.program.errors import Problem
from revtune.program.files import locked
from revtune.program.studies.compare import table as compare_table
from revtune.program.studies.compare.compare import run
from revtune.program.studies.compare.contest import Contest, Contestant, Options
from revtune.program.studies.compare.table import figures
from revtune.program.tasks.image_task import ImageStudy
from revtune.program.tasks.learner import Learner
from revtune.program.tasks.plain_learner import PlainLearner
from revtune.program.tasks.task import Learning
from tests.tiny_contests import tiny_options


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options[ImageStudy]:
    monkeypatch.setattr(compare_table, "plot", lambda found: b"")
    return tiny_options(tmp_path, monkeypatch)


def held_with(options: Options[ImageStudy], *who: Contestant, **changes: Any) -> Contest:
    """The contest of these contestants, through."""
    options = dataclasses.replace(options, contestants=who, **changes)
    return Contest("mnist", options, run("mnist", options))


def rows(contest: Contest) -> list[str]:
    """Who is in the table."""
    return [row["contestant"] for row in figures(contest)["rows"]]


@pytest.mark.parametrize("first", ["stn", "delta"])
def test_final_is_made_anew_when_a_better_tuner_comes(first: Contestant, options: Options[ImageStudy]) -> None:
    other: Contestant = "delta" if first == "stn" else "stn"
    alone = held_with(options, first, "final").result(1, "final")
    assert alone is not None
    both = held_with(options, first, other)
    results = {one: both.result(1, one) or {} for one in (first, other)}
    same = results[first]["valid"]["loss"] <= results[other]["valid"]["loss"]
    assert both.result(1, "final") == (alone if same else None)
    assert rows(both) == ["stn", "delta"] + ["final"] * same
    again = held_with(options, first, other, "final").result(1, "final")
    assert again is not None and again["values"] == results[first if same else other]["final_values"]
    assert (both.folder_of(1, "final").with_name("final-aside-1") / "result.json").exists() != same


def test_final_that_was_stopped_does_not_go_on_at_other_values(
    options: Options[ImageStudy], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(one: Learner) -> None:
        if isinstance(one, PlainLearner) and one.steps == 4:
            raise KeyboardInterrupt
        step(one)

    step = Learner.step
    for budget in (20.0, 30.0):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Learner, "step", stop)
            patch.setattr("revtune.program.tasks.loop.SAVE_SECONDS", -1.0)
            held_with(options, "stn", "final", budget=budget)
    contest = held_with(options, "stn", "final", budget=40.0)
    stn, final = (contest.result(1, one) or {} for one in ("stn", "final"))
    assert final["values"] == final["final_values"] == stn["final_values"]
    lines = contest.validations(1, "final")
    assert [one["step"] for one in lines][:2] == [2, 4]
    assert all(one["values"] == stn["final_values"] for one in lines)
    asides = sorted(path.name for path in (contest.folder / "seed-1").glob("*-aside-*"))
    assert asides == ["final-aside-1", "final-aside-2"]
    assert (contest.folder / "seed-1/final-aside-2/checkpoint.safetensors").exists()


def lasting(options: Options[ImageStudy]) -> Options[ImageStudy]:
    """Options by which plain runs learn until their time is spent."""
    learning: Learning = dataclasses.replace(options.study.learning, patience=100)
    return dataclasses.replace(options, study=dataclasses.replace(options.study, learning=learning))


def test_trials_of_a_search_are_of_one_length(options: Options[ImageStudy], capsys: pytest.CaptureFixture[str]) -> None:
    options = lasting(options)
    for number, budget in enumerate((8.0, 13.0, 20.0)):
        contest = held_with(options, "plain", "random", budget=budget)
        terms = contest.terms(1, "random")
        assert terms == contest.begun_on(1, "random") == {"steps": contest.validations(1, "plain")[-1]["step"]}
        ends = {one["trial"]: one["step"] for one in contest.validations(1, "random")}
        assert list(ends)[0] == 0 and max(ends.values()) <= terms["steps"]
        told = capsys.readouterr().out
        assert ("random: begun anew, as what it depends on has changed" in told) == (number > 0)
    assert len(list((contest.folder / "seed-1").glob("random-aside-*"))) == 2
    assert (contest.result(1, "random") or {})["wall"] >= 20


def test_a_search_that_wrote_no_terms_down_goes_on(
    options: Options[ImageStudy], monkeypatch: pytest.MonkeyPatch
) -> None:
    contest = held_with(options, "plain", "random")
    before = contest.validations(1, "random")
    (contest.folder_of(1, "random") / "terms.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", None)
        held_with(options, "plain", "random")
    grown = held_with(options, "plain", "random", budget=40.0)
    assert grown.validations(1, "random")[: len(before)] == before


def test_the_length_of_trials_is_in_the_plain_runs_result(options: Options[ImageStudy]) -> None:
    contest = held_with(options, "plain")
    terms, path = contest.terms(1, "random"), contest.folder_of(1, "plain") / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))
    assert held_with(options, "plain", "random", accept_edits=True).terms(1, "random") == terms
    with pytest.raises(Problem, match="metrics.jsonl has .* bytes, fewer than"):
        held_with(options, "plain", "random", budget=40.0)


def test_who_is_refused_changes_nothing(options: Options[ImageStudy]) -> None:
    contest = held_with(options, "plain")
    before = (contest.folder / "config.json").read_bytes()
    with locked(contest.folder), pytest.raises(Problem, match="another process is at work in "):
        held_with(options, "plain", budget=40.0)
    assert (contest.folder / "config.json").read_bytes() == before
    held_with(options, "plain")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def holding(content: str) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        path.write_text(content)

    return put


def without(name: str) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != name}))

    return put


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("seed-1/plain/result.json", cut, "result.json is damaged: expected a JSON object"),
        ("seed-1/plain/result.json", holding("[]"), r"expected a JSON object, got \[\]; without it, the same command"),
        ("seed-1/plain/result.json", without("steps"), r"result.json is damaged: expected steps \(int\), got"),
        ("seed-1/random/result.json", without("valid"), r"result.json is damaged: expected valid \(an object\), got"),
        ("seed-1/random/terms.json", cut, "terms.json is damaged: expected a JSON object"),
        ("seed-1/plain/metrics.jsonl", holding(""), "metrics.jsonl is damaged: it is empty, expected a JSON object a"),
        ("seed-1/plain/metrics.jsonl", cut, r"metrics.jsonl is damaged: line \d+ has no end"),
        ("seed-1/random/metrics.jsonl", holding("\0\n"), "metrics.jsonl is damaged in line 1: expected a JSON object"),
        ("config.json", holding("{"), "config.json is no configuration of a contest of this revtune: "),
        ("config.json", holding("[]"), "config.json is no configuration .*: expected a JSON object"),
        ("config.json", without("budget"), r"config.json is no configuration .*: expected budget \(a number\)"),
    ],
)
def test_damaged_files_are_told(
    name: str, damage: Callable[[Path], None], told: str, options: Options[ImageStudy]
) -> None:
    contest = held_with(options, "plain", "random")
    damage(contest.folder / name)
    with pytest.raises(Problem, match=told):
        held_with(options, "plain", "random")


def test_a_result_that_was_taken_away_is_written_anew(
    options: Options[ImageStudy], monkeypatch: pytest.MonkeyPatch
) -> None:
    contest = held_with(options, "plain", "stn", "final", "random")
    for one in contest.options.contestants:
        (contest.folder_of(1, one) / "result.json").unlink()
    monkeypatch.setattr(Learner, "step", None)
    again = held_with(options, "plain", "stn", "final", "random")
    assert rows(again) == ["plain", "stn", "final", "random"]
    assert not list((contest.folder / "seed-1").glob("*-aside-*"))
