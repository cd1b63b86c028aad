"""Samplers and pruners: what they draw where, and that a search that was stopped draws what a whole one does."""

import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import CmaEsSampler
from optuna.trial import TrialState

from revtune.program.recipes import find
from revtune.program.studies.compare.samplers import CmaEs, distribution, pruner, sampler
from revtune.program.studies.compare.search import Search
from revtune.program.tasks.task import SEARCHERS, Searcher, Space, Task
from tests.tiny_contests import Seconds, quiet, tiny_study

SPACES = {"rate": Space(0.0, 0.9), "decay": Space(1e-4, 1.0, log=True), "holes": Space(0, 4, whole=True)}

TRIALS, STOPPED = 13, 12
"""A Gaussian process and CMA-ES in three dimensions have learnt from others by then."""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr("revtune.program.studies.compare.search.Clock", Seconds)
    found: Task = find("mnist").task(tiny_study(tmp_path / "data"))
    return found


def values(task: Task, searcher: Searcher, folder: Path, trials: int, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Of so many trials of two updates in a folder, which may hold some."""
    folder.mkdir(exist_ok=True)
    search = Search(task, searcher, folder, 2, "")
    ask = search._next

    def next_or_stop() -> Any:
        if len(search.ended()) == trials:
            raise KeyboardInterrupt
        return ask()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(search, "_next", next_or_stop)
        search.learn(1e6, "wall", quiet())
    search.close()
    return [trial.params for trial in search.ended()]


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_a_search_that_was_stopped_draws_what_a_whole_one_does(
    searcher: Searcher, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = values(task, searcher, tmp_path / "whole", TRIALS, monkeypatch)
    values(task, searcher, tmp_path / "stopped", STOPPED, monkeypatch)
    assert values(task, searcher, tmp_path / "stopped", TRIALS, monkeypatch) == whole
    assert len({str(found) for found in whole}) == TRIALS
    assert b"optimizer" not in (tmp_path / "whole/journal.log").read_bytes()  # Optuna's CMA-ES pickles its own


def studied(searcher: Searcher, trials: int, spaces: dict[str, Space], sampled: Any = sampler) -> optuna.Study:
    """A study of trials whose loss is their distance from a point; each third one fails."""
    study = optuna.create_study(pruner=pruner(searcher, 9))
    for number in range(trials):
        study.sampler = sampled(searcher, spaces, 1, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = study.ask({name: distribution(space) for name, space in spaces.items()})
        if number % 3 == 2:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, sum((value - 0.3) ** 2 for value in trial.params.values()))
    return study


@pytest.mark.parametrize("searcher", ["asha", "gp", "cmaes"])
@pytest.mark.parametrize("names", [["holes"], ["rate", "decay", "holes"]])
def test_values_lie_in_their_spaces(searcher: Searcher, names: list[str]) -> None:
    spaces = {name: SPACES[name] for name in names}
    for trial in studied(searcher, 17, spaces).trials:
        assert trial.params.keys() == spaces.keys()
        for name, value in trial.params.items():
            assert spaces[name].low <= value <= spaces[name].high
            assert type(value) is (int if spaces[name].whole else float)


def test_cma_es_moves_as_optunas_does() -> None:
    study, led = studied("cmaes", 40, SPACES, lambda *given: CmaEsSampler(seed=given[-1])), list[Any]()

    class Noted(CmaEs):
        def _init_optimizer(self, *args: Any) -> Any:
            led.append(super()._init_optimizer(*args))
            return led[-1]

    study.sampler = Noted(seed=1)
    whole = study.get_trials(states=(TrialState.COMPLETE,))
    study.ask({name: distribution(space) for name, space in SPACES.items()})
    pickled: Any = CmaEsSampler()._restore_optimizer(whole)
    assert led[0].generation == pickled.generation == 3
    for name in ("mean", "_sigma", "_C"):
        assert getattr(led[0], name) == pytest.approx(getattr(pickled, name), rel=1e-9)


def test_asha_ends_most_trials_early(task: Task, tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    search = Search(task, "asha", tmp_path / "search", 20, "")
    search.learn(150.0, "wall", quiet())
    states = [trial.state for trial in search.ended()]
    result = search.result()
    search.close()
    assert states.count(TrialState.PRUNED) > states.count(TrialState.COMPLETE) >= 1
    assert result["pruned"] == states.count(TrialState.PRUNED)
