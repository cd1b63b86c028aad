"""Files that were written before the code lay in rooms: runs go on, models and tuners are loaded, figures are the same.

`written_before/` holds runs stopped after 7 of 12 steps, a tuner after 3 steps, and what each came to later, by version
0.1.0 of 2026-11-29; those of `ptb_lstm` and of layers of torch are of 2026-11-30, before language models shared a task.
Another machine's last bits may differ, hence the tolerance.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from revtune.program.cli.main import main
from tests.small_tuner import net, tuner
from tests.tiny_images import write_images
from tests.tiny_pairs import write_pairs
from tests.tiny_words import write_words

KEPT = Path(__file__).with_name("written_before")


def write_text(folder: Path) -> None:
    folder.with_suffix(".txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)


DATA: dict[str, tuple[str, Callable[[Path], object]]] = {
    "text": ("text", write_text),
    "mnist": ("images", write_images),
    "multi30k": ("pairs", lambda folder: write_pairs(folder, train=60)),
    "ptb_lstm": ("words", write_words),
    "ptb_revlstm": ("words", write_words),
    "text_lstm": ("text", write_text),
    "text_gru_stn": ("text", write_text),
}
"""By run, the folder of its data and what wrote them."""


@pytest.fixture
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A stopped run beside its data."""
    name, write = DATA[request.param]
    write(tmp_path / name)
    run = shutil.copytree(KEPT / request.param, tmp_path / request.param)
    config = run / "config.json"
    config.write_text(config.read_text().replace("@FOLDER@", str(tmp_path)))
    return run


@pytest.mark.parametrize("kept", DATA, indirect=True)
def test_a_run_goes_on_to_the_same_weights_and_is_evaluated(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(kept)]) == 0
    later = load_file(KEPT / "whole" / f"{kept.name}-weights.safetensors")
    weights = load_file(kept / "weights.safetensors")
    assert weights.keys() == later.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, later[name], rtol=1e-4, atol=1e-6)
    if (result := KEPT / "whole" / f"{kept.name}-result.json").exists():
        assert json.loads((kept / "result.json").read_text()).keys() == json.loads(result.read_text()).keys()
    capsys.readouterr()
    assert main(["evaluate", str(kept)]) == 0
    assert "test: " in capsys.readouterr().out


def test_a_tuner_goes_on_to_the_same_weights() -> None:
    saved = torch.load(KEPT / "tuner.pt", weights_only=True)
    model = net(4)
    model.load_state_dict(saved["model"])
    later = tuner(model)
    later.load_state_dict(saved["tuner"])
    for _ in range(3):
        later.step(saved["batch"], saved["batch"])
    weights = torch.load(KEPT / "tuner-later.pt", weights_only=True)
    for name, weight in weights.items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-5, atol=1e-7)
