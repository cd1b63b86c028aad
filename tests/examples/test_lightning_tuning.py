"""Lightning's loop and checkpoints around a tuner."""

from pathlib import Path
from typing import Any

import pytest
import torch

import revtune as rt

NEEDS = ("lightning",)

pytestmark = pytest.mark.filterwarnings("ignore")  # of what Lightning itself does, and of folders that are not empty


def test_a_tuner_that_stopped_inside_an_epoch_goes_on_bit_for_bit(example: Any, tmp_path: Path) -> None:
    sizes = {"units": 16, "length": 20, "text": example.MANUAL[: 16 * 301]}  # twelve batches an epoch
    example.fit(str(tmp_path / "parts"), 11, **sizes)
    parts = example.fit(str(tmp_path / "parts"), 20, resume=True, **sizes)
    whole = example.fit(str(tmp_path / "whole"), 20, **sizes)
    assert parts.tuner.steps == parts.trainer.global_step == 20 and parts.tuner.valid_steps == 6
    assert parts.tuner.values() == whole.tuner.values()
    assert parts.tuner.schedule() == whole.tuner.schedule()
    assert all(torch.equal(*pair) for pair in zip(parts.parameters(), whole.parameters(), strict=True))
    assert all(abs(now - 0.1) > 1e-3 for now in parts.tuner.values().values())
    plain: Any = rt.frozen(parts.net)
    assert type(plain["rnn"]) is rt.RevGRU
