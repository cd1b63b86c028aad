"""Hyperparameters as numbers."""

import pytest

from revtune.errors import HyperparameterError
from revtune.tuning.hypers.constants import Constants, Numbers
from revtune.tuning.hypers.kinds import Hyper, Integer, Rate

SPECS: dict[str, Hyper] = {"drop": Rate(0.05), "noise": Rate(0.5), "holes": Integer(1, 0, 4)}


def test_values_are_where_they_start_or_are_put() -> None:
    hypers = Constants(SPECS, {"drop": 0.4})
    assert hypers.values() == {"drop": 0.4, "noise": 0.5, "holes": 1}
    hypers.put({"holes": 3})
    assert (hypers["holes"], hypers.values()["holes"]) == (3, 3)
    with pytest.raises(HyperparameterError, match="no hyperparameter 'dorp'; there are drop, noise, holes"):
        hypers.put({"dorp": 0.1})


def test_numbers_are_read_as_attributes_too() -> None:
    assert Numbers(decay=0.1).decay == 0.1
    with pytest.raises(AttributeError, match="decya"):
        _ = Numbers(decay=0.1).decya
