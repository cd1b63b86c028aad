"""The well-known loop, with a layer that rewinds and with one that stores."""

from pathlib import Path
from typing import Any

import pytest

NEEDS = ()
WORDS = ["the quick brown fox jumps over the lazy dog", "a lazy dog sleeps", "the fox runs past the dog"]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for name, repeats in (("train", 40), ("valid", 10), ("test", 10)):
        (tmp_path / f"{name}.txt").write_text("\n".join(WORDS * repeats), encoding="utf-8")
    return str(tmp_path)


@pytest.mark.parametrize("kind", ["RevGRU", "RevLSTM", "GRU", "LSTM"])
def test_it_learns(example: Any, folder: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--emsize", "16", "--nhid", "16", "--epochs", "4", "--batch", "8", "--bptt", "12"]
    found = example.main(["--data", folder, "--model", kind, *sizes])
    assert found[-1] < 0.7 * 15 and found[-1] == pytest.approx(min(found[:-1]), rel=0.1)  # of 15 words
    assert "bytes a step" in capsys.readouterr().out
