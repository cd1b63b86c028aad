"""Optuna's search, with pruning, around a net that rewinds."""

from typing import Any

NEEDS = ("optuna",)


def test_a_search_prunes_and_finds_something_that_learns(example: Any) -> None:
    study = example.search(6, updates=30, steps=30, rows=8)
    states = [trial.state.name for trial in study.trials]
    assert states.count("COMPLETE") + states.count("PRUNED") == 6 and "PRUNED" in states
    assert study.best_value < 2.0
    assert study.best_trial.user_attrs["bits_per_unit_step"] > 0
