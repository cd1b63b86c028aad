"""scikit-learn's search around a net that rewinds."""

from typing import Any

import numpy as np
from torch import nn

import revtune as rt

NEEDS = ("sklearn", "skorch")


def test_a_search_finds_a_net_that_has_learnt(example: Any, tmp_path: Any) -> None:
    grid = example.search(rows=256, steps=20, epochs=12)
    assert grid.score(*example.sequences(256, 20, seed=1)) > 0.8
    file, x = str(tmp_path / "net.safetensors"), example.sequences(8, 20)[0]
    grid.best_estimator_.save_params(f_params=file, use_safetensors=True)
    other = example.classifier(**grid.best_params_).initialize()
    other.load_params(f_params=file, use_safetensors=True)
    assert np.array_equal(other.predict_proba(x), grid.best_estimator_.predict_proba(x))


def test_it_takes_less_memory_than_a_layer_that_stores(example: Any) -> None:
    nets = nn.GRU(2, 64, batch_first=True), rt.RevGRU(2, 64, batch_first=True, output="last")
    theirs, ours = (max(example.peak(net, 10), example.peak(net, 2000)) for net in nets)
    assert ours < theirs / 5
