"""Contests: who takes part, that they go on where they stopped, and what their figures say."""

import dataclasses
import importlib.util
import io
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from rich.console import Console

from revtune.program.cli.main import main
from revtune.program.errors import Problem
from revtune.program.recipes import find
from revtune.program.studies.compare import table as compare_table
from revtune.program.studies.compare.compare import run
from revtune.program.studies.compare.contest import CONTESTANTS, Contest, Options
from revtune.program.studies.compare.curves import best_after, curve, goal, reached
from revtune.program.studies.compare.live import CompareReport
from revtune.program.studies.compare.plot import plot
from revtune.program.studies.compare.population import PopulationSettings
from revtune.program.studies.compare.samplers import distribution, grid, sampler
from revtune.program.studies.compare.search import Search
from revtune.program.studies.compare.table import figures, markdown, verdicts
from revtune.program.tasks.image_task import ImageStudy
from revtune.program.tasks.learner import Learner
from revtune.program.tasks.plain_learner import PlainLearner
from revtune.program.tasks.task import SEARCHERS, Space
from tests.tiny_contests import Seconds, quiet, tiny_options

SPACES = {"a": Space(0.0, 0.9), "b": Space(1e-4, 1.0, log=True), "c": Space(0, 2, whole=True)}


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options[ImageStudy]:
    return tiny_options(tmp_path, monkeypatch)


def test_all_take_part_and_are_told(options: Options[ImageStudy], capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("mnist", options)
    contest = Contest("mnist", options, folder)
    for one in CONTESTANTS:
        found = contest.result(1, one)
        assert found is not None and found["wall"] <= 21
        assert found["valid"]["loss"] == min(facts["loss"] for facts in contest.validations(1, one))
        assert ("trials" in found) == (one in SEARCHERS)
    told = capsys.readouterr().out
    assert "seed 1, hyperband: held-out loss " in told and " Hyperband " in told and " PBT " in told
    assert "fewer than 30 whole trials" in told
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    tuners = [contest.result(1, one) for one in ("stn", "delta")]
    better = min((one for one in tuners if one), key=lambda one: one["valid"]["loss"])
    final = contest.result(1, "final")
    assert final is not None and final["values"] == better["final_values"] != better["values"]
    searchers = [contest.result(1, one) for one in SEARCHERS]
    best = min((one for one in searchers if one), key=lambda one: one["valid"]["loss"])
    found = contest.result(1, "found")
    assert found is not None and found["values"] == best["values"]
    assert found["steps"] == final["steps"] == better["steps"] or found["wall"] > options.budget


def test_trials_are_as_long_as_the_plain_run_improves(options: Options[ImageStudy], monkeypatch: Any) -> None:
    monkeypatch.setattr(compare_table, "plot", lambda found: b"")
    options = dataclasses.replace(options, contestants=("plain", "random"))
    contest = Contest("mnist", options, run("mnist", options))
    plain = contest.validations(1, "plain")
    best = min(facts["loss"] for facts in plain)
    assert plain[-2]["loss"] == best < plain[-1]["loss"]
    steps = (contest.terms(1, "random") or {})["steps"]
    assert steps == plain[-1]["step"]
    ends = {facts["trial"]: facts["step"] for facts in contest.validations(1, "random")}
    assert set(list(ends.values())[:-1]) == {steps}


def test_under_a_cosine_runs_and_trials_end_with_it(options: Options[ImageStudy], monkeypatch: Any) -> None:
    monkeypatch.setattr(compare_table, "plot", lambda found: b"")
    learning = dataclasses.replace(options.study.learning, schedule="cosine", steps=6, patience=1)
    study = dataclasses.replace(options.study, learning=learning)
    pbt = PopulationSettings(members=2, interval=1)
    options = dataclasses.replace(
        options, study=study, budget=60.0, contestants=("plain", "stn", "final", "random", "pbt"), pbt=pbt
    )
    contest = Contest("mnist", options, run("mnist", options))
    for one in ("plain", "stn", "final"):
        assert (contest.result(1, one) or {})["steps"] == 6, one
    assert (contest.result(1, "pbt") or {})["steps"] == 2 * 6  # of both members
    ends = {facts["trial"]: facts["step"] for facts in contest.validations(1, "random")}
    assert len(ends) > 1 and set(list(ends.values())[:-1]) == {6}


def test_the_plain_run_at_the_final_values_takes_as_many_updates_as_the_tuner(
    options: Options[ImageStudy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_table, "plot", lambda found: b"")
    options = dataclasses.replace(options, contestants=("stn", "final"))
    contest = Contest("mnist", options, run("mnist", options))
    (stn, final), facts = (contest.result(1, one) or {} for one in options.contestants), contest.validations(1, "final")
    assert final["steps"] == stn["steps"] and final["wall"] < options.budget + 2
    assert final["valid"]["loss"] == min(one["loss"] for one in facts)
    after = [one["step"] for one in facts if one["step"] > final["step"]]
    assert len(after) > options.study.learning.patience  # it stopped improving, and did not end

    def slow(one: Learner, learn: Any = Learner.step) -> None:
        learn(one)
        if isinstance(one, PlainLearner):
            clocks[-1].wall += 1

    class Noted(Seconds):
        def __init__(self, *spent: float, **more: float) -> None:
            super().__init__(*spent, **more)
            clocks.append(self)

    clocks: list[Seconds] = []
    monkeypatch.setattr("revtune.program.tasks.loop.Clock", Noted)
    monkeypatch.setattr(Learner, "step", slow)
    options = dataclasses.replace(options, out=tmp_path / "slow")
    contest = Contest("mnist", options, run("mnist", options))
    stn, final = (contest.result(1, one) or {} for one in options.contestants)
    assert final["steps"] < stn["steps"] and final["wall"] >= options.budget


def test_a_contest_goes_on_where_it_stopped(
    options: Options[ImageStudy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_table, "plot", lambda found: b"")
    options = dataclasses.replace(options, contestants=("plain", "stn", "tpe"))
    whole = run("mnist", options)
    halted = dataclasses.replace(options, out=tmp_path / "halted")
    for owner, method, count in (
        ("tasks.tuned_learner.TunedLearner", "validate", 2), ("studies.compare.search.Search", "_end", 2),
    ):  # fmt: skip
        original, calls = _find(owner, method), iter(range(count))

        def stop(*args: Any, calls: Any = calls, original: Any = original) -> Any:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return original(*args)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"revtune.program.{owner}.{method}", stop)
            patch.setattr("revtune.program.tasks.loop.SAVE_SECONDS", -1.0)
            run("mnist", halted)
    run("mnist", halted)
    for one in ("plain", "stn"):
        first, second = (Contest("mnist", options, folder) for folder in (whole, tmp_path / "halted"))
        assert first.validations(1, one) == second.validations(1, one)
    trials = [facts["trial"] for facts in second.validations(1, "tpe")]
    assert trials == sorted(trials) and 2 not in trials and 3 in trials  # trial 2 was lost
    same = [facts for facts in first.validations(1, "tpe") if facts["trial"] < 2]
    assert same == [facts for facts in second.validations(1, "tpe") if facts["trial"] < 2]


def _find(owner: str, method: str) -> Any:
    module, kind = owner.rsplit(".", 1)
    return getattr(getattr(import_module(f"revtune.program.{module}"), kind), method)


def test_a_finished_contest_learns_nothing_anew(options: Options[ImageStudy], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_table, "plot", lambda found: b"")
    options = dataclasses.replace(options, contestants=("plain",))
    folder = run("mnist", options)
    before = (folder / "results.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", None)
        assert run("mnist", options) == folder
    assert (folder / "results.json").read_bytes() == before
    more = dataclasses.replace(options, seeds=2, contestants=("plain", "stn"))
    found = figures(Contest("mnist", more, run("mnist", more)))
    assert [[one["seed"] for one in row["runs"]] for row in found["rows"]] == [[1, 2], [1, 2]]
    with pytest.raises(Problem, match="holds a contest with other settings"):
        run("mnist", dataclasses.replace(options, clock="cpu"))
    with pytest.raises(Problem, match="--budget 20, which can only grow, got 19"):
        run("mnist", dataclasses.replace(options, budget=19.0))


def test_a_budget_can_grow(options: Options[ImageStudy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_table, "plot", lambda found: b"")
    told = list[bool]()
    monkeypatch.setattr(
        CompareReport, "through", lambda report, facts: told.append(report.best == facts["valid"]["loss"])
    )
    options = dataclasses.replace(options, contestants=("plain", "stn", "final", "random"))
    run("mnist", options)
    larger = dataclasses.replace(options, budget=40.0)
    grown = Contest("mnist", larger, run("mnist", larger))
    whole = Contest("mnist", larger, run("mnist", dataclasses.replace(larger, out=tmp_path / "whole")))
    grown_results, whole_results = (
        {one: contest.result(1, one) or {} for one in options.contestants} for contest in (grown, whole)
    )
    losses = [[facts["loss"] for facts in contest.validations(1, "stn")] for contest in (grown, whole)]
    assert losses[0] == losses[1][: len(losses[0])] and len(losses[1]) - len(losses[0]) <= 1  # asked once more
    assert grown_results["plain"]["valid"] == whole_results["plain"]["valid"]
    assert grown_results["final"]["values"] == grown_results["stn"]["final_values"]
    assert json.loads((grown.folder / "seed-1/final-aside-1/result.json").read_text())["budget"] == 20
    trials = [facts["trial"] for facts in grown.validations(1, "random")]
    assert trials == sorted(trials) and grown_results["random"]["wall"] >= 40
    assert grown_results["random"]["trials"] > 3 and grown_results["random"]["pruned"] == 2  # one at each budget's end
    assert len(told) > 8 and all(told)  # the best of all, also where a run was gone on with


def test_hyperband_prunes_and_keeps_the_best(options: Options[ImageStudy], tmp_path: Path) -> None:
    task = find("mnist").task(options.study)
    (tmp_path / "search").mkdir()
    search = Search(task, "hyperband", tmp_path / "search", 20, "")
    search.learn(120.0, "wall", quiet())
    states = [trial.state for trial in search.ended()]
    assert TrialState.PRUNED in states and TrialState.COMPLETE in states
    result = search.result()
    search.close()
    assert (result["trials"], result["pruned"]) == tuple(map(states.count, (TrialState.COMPLETE, TrialState.PRUNED)))
    assert len(list((tmp_path / "search").glob("trial-*.safetensors"))) == 1
    lines = [json.loads(line) for line in (tmp_path / "search/metrics.jsonl").read_text().splitlines()]
    assert result["valid"]["loss"] == pytest.approx(min(line["loss"] for line in lines))


def test_a_grid_is_gone_through_once(options: Options[ImageStudy], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("revtune.program.studies.compare.samplers.GRID_POINTS", 1)
    task = find("mnist").task(options.study)
    (tmp_path / "search").mkdir()
    search = Search(task, "grid", tmp_path / "search", 2, "")
    search.learn(1000.0, "wall", quiet())
    search.close()
    first, *points = [tuple(trial.params.values()) for trial in search.ended()]
    assert first == (0.05, 0.05, 0.05) and len(points) == len(set(points)) == 8
    assert {value for point in points for value in point} == {0.225, 0.675}


def test_spaces_in_optunas_terms() -> None:
    assert grid(SPACES)["c"] == [0, 1, 2]
    assert grid(SPACES)["b"] == pytest.approx([10 ** (-4 + 4 * share) for share in (0.1, 0.3, 0.5, 0.7, 0.9)])
    assert [distribution(space).to_internal_repr(1) for space in SPACES.values()] == [1.0, 1.0, 1.0]
    kinds = [type(sampler(one, SPACES, 1, 0)).__name__ for one in SEARCHERS]
    assert kinds == ["RandomSampler", "Grid", "TPESampler", "TPESampler", "RandomSampler", "GPSampler", "CmaEs"]


def test_curves_and_verdicts() -> None:
    points = curve([{"loss": loss, "wall": when} for when, loss in enumerate([3.0, 2.0, 2.5, 1.0])], "wall")
    assert points == [(0, 3.0), (1, 2.0), (3, 1.0)]
    assert (best_after(points, 2), best_after(points, -1)) == (2.0, float("inf"))

    def row(name: str, loss: float, when: float, **more: Any) -> dict[str, Any]:
        losses = {"valid": {"loss": loss}, "test": {"loss": loss, "error": 0.1}}
        runs = [{"seed": 1, "curve": [(when, loss)], "wall": 90.0, "reached": None, **losses, **more}]
        return {"contestant": name, "runs": runs}

    rows = [row("plain", 0.9, 10), row("stn", 0.5, 20, reached=20), row("tpe", 0.6, 80, trials=40, pruned=0)]
    found = {"recipe": "x", "budget": 100.0, "clock": "wall", "quoted": "error", "rows": rows}
    told = verdicts(found)
    assert "STN's held-out loss 0.5000 is below 0.6000, TPE" in told
    assert "STN reached the best searcher's held-out loss after 20% of the time" in told
    assert not any("fewer" in line for line in told)
    assert "| STN |  | 0.5000 | 0.5000 | 0.5000 | 90 | 0.5000 | 0.1 |  |" in markdown(found)
    last = {"test": {"loss": 14.5, "perplexity": 1234.5}, "trials": 29, "pruned": 142, "wall": 420}
    runs = [{**rows[2]["runs"][0], **last}]
    shown = Console(file=io.StringIO(), width=80)
    shown.print(compare_table.table({**found, "quoted": "perplexity", "rows": [{"contestant": "plain", "runs": runs}]}))
    assert "29 + 142" in shown.file.getvalue() and "…" not in shown.file.getvalue()  # type: ignore[attr-defined]
    rows[2]["runs"][0] |= {"valid": {"loss": 0.4}, "trials": 3}
    rows[1]["runs"][0]["reached"] = None
    told = verdicts(found)
    assert "STN's held-out loss 0.5000 is ABOVE 0.4000, TPE" in told
    assert "fewer than 30 whole trials: TPE" in told
    assert told[-1] == "STN NEVER reached the best searcher's held-out loss at seeds 1"
    assert plot(found).startswith(b"\x89PNG")
    assert goal(rows, 1) == 0.4 and reached(rows[0]["runs"][0], 0.9) == 10


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "repeat",
            "recipe repeat tunes no hyperparameters; revtune compare takes stdlib, cifar10, fashion, mnist, ptb, ",
        ),
        (
            "nosuch",
            "there is no recipe 'nosuch'; revtune compare takes stdlib, cifar10, fashion, mnist, ptb, ptb_lstm, ",
        ),
        ("ptb --device cuda", "--device must be cpu in a contest, got cuda"),
        ("ptb --lr 0", "--lr must be above 0"),
        ("ptb --dropout 1e-9", "--dropout must be 0, to start from --tuned-from, or from "),
        ("output_dropout", "in an experiment of its own, which revtune train output_dropout runs; "),
        ("mnist --seeds 0", "--seeds must be at least 1, got 0"),
        ("mnist --budget nan", "--budget must be above 0 and below 1e9, got nan"),
        ("mnist --budget 1e9", "--budget must be above 0 and below 1e9, got 1000000000.0"),
        ("mnist --stn.scale 2", "--stn.scale must be at most 1 where it is tuned, got 2.0"),
        ("mnist --contestants final plain", "final needs stn or delta"),
        ("mnist --contestants stn tpe", "searchers need plain"),
        ("mnist --contestants plain tpe found", "found needs a searcher, whose values it is run at, and stn or delta"),
        ("mnist --lr 0", "--lr must be above 0"),
        (
            "mnist --schedule cosine --steps 5 --valid-every 2",
            "--steps must be a multiple of --valid-every 2, as runs and",
        ),
    ],
)
def test_what_cannot_be_compared_is_told(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *words.split()]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "who"), [("optuna", "random"), ("optuna", "gp"), ("scipy", "gp"), ("cmaes", "cmaes")]
)
def test_a_package_that_is_missing_is_told_at_once(
    package: str, who: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else find_spec(name))
    assert main(["compare", "mnist", "--contestants", "plain", who]) == 2
    told = f"{who} needs {package}, which is missing; pip install 'revtune[search]' installs it"
    assert told in capsys.readouterr().err


def test_help_says_what_can_be_compared_and_where_options_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--help"]) == 0
    told = capsys.readouterr().out
    assert "mnist: MNIST: a multilayer perceptron" in told and "repeat" not in told
    assert "revtune compare RECIPE --help lists the options" in told
