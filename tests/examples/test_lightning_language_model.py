"""Lightning's loop and checkpoints around a loss that is rewound."""

from pathlib import Path
from typing import Any

import pytest
import torch

NEEDS = ("lightning",)

pytestmark = pytest.mark.filterwarnings("ignore")  # of what Lightning itself does, and of folders that are not empty


def test_a_run_that_stopped_inside_an_epoch_goes_on_bit_for_bit(example: Any, tmp_path: Path) -> None:
    sizes = {"units": 16, "length": 20, "text": example.MANUAL[: 16 * 101]}  # five segments an epoch
    example.fit(str(tmp_path / "parts"), 7, **sizes)
    parts = example.fit(str(tmp_path / "parts"), 13, resume=True, **sizes)
    whole = example.fit(str(tmp_path / "whole"), 13, **sizes)
    one, other = (trainer.lightning_module for trainer in (parts, whole))
    assert one.state.dtype == torch.float64 and torch.equal(one.state, other.state)
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    assert parts.callback_metrics["train"] == whole.callback_metrics["train"] < 5.4  # of log 256 = 5.545


def test_the_state_is_carried_from_segment_to_segment(example: Any) -> None:
    segments = list(example.Segments(example.MANUAL[: 4 * 101], 4, 20))
    assert len(segments) == 5 and all(torch.equal(a[-1], b[0]) for a, b in zip(segments, segments[1:], strict=False))
    model = example.LanguageModel(16)
    with torch.no_grad():
        state: Any = None
        for segment in segments:
            _, state = model.loss(segment, state)
        _, whole = model.loss(example.MANUAL[: 4 * 101].view(4, -1).t(), None)
    assert torch.allclose(state, whole, rtol=0, atol=1e-6)
