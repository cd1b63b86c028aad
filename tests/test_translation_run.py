"""Translation runs: they learn, stop and go on bit for bit, are used without their data, and say what is wrong."""

import json
from pathlib import Path

import pytest
import torch

from revtune import checkpoint
from revtune.cli import main
from tests.tiny_pairs import translated, write_pairs

SMALL = ["--embedding", "16", "--hidden", "16", "--attend", "emb+slice:4", "--dropout", "0", "--slice-dropout", "0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up pairs."""
    return write_pairs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt them."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    told = ["--steps", "160", "--valid-every", "40", "--batch", "20", "--lr", "0.02"]
    assert main(["train", "multi30k", "--data", str(data), "--out", str(folder), *SMALL, *told]) == 0
    return folder


def test_it_learns_to_translate(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert result["bleu"] > 80 and result["greedy_bleu"] > 80 and "tok:none" in result["signature"]
    assert result["test"]["perplexity"] < 1.5
    for side in ("encoder", "decoder"):
        found = result["bits"][side]
        assert 0 < found["forgotten"] < found["stored"] < 3 + 1
        assert found["positions"]["live"] <= found["positions"]["padded"] <= found["positions"]["unsorted"]


def test_it_translates_a_file_without_its_data(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").write_text("the dog sees a ball .\n\nthe zorg has a tree .\n")
    place = ["--file", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--plot", str(tmp_path / "a.png")]
    assert main(["translate", str(run), *place]) == 0
    lines = (tmp_path / "out").read_text().split("\n")
    assert lines[0] == translated("the dog sees a ball .") and lines[1] == "" and len(lines) == 4
    told = capsys.readouterr().err
    assert "line 2: it is empty and stays so" in told and "line 3: unknown words: zorg" in told
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_it_translates_what_is_typed(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("the man has a bike .\n" + "the dog " * 30 + "\n"))
    assert main(["translate", str(run), "--beam", "1"]) == 0
    told = capsys.readouterr()
    assert told.out.split("\n")[0] == translated("the man has a bike .")
    assert "line 2: its 60 words are more than the 50 of the longest sentence learnt" in told.err


def test_it_is_evaluated(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVTUNE_DATA", str(data))
    assert main(["evaluate", str(run)]) == 0
    told = capsys.readouterr().out
    result = json.loads((run / "result.json").read_text())
    assert f"perplexity {result['test']['perplexity']:.2f}" in told and f"BLEU {result['bleu']:.2f}" in told


@pytest.mark.parametrize("model", ["revlstm", "gru"])
def test_it_goes_on_bit_for_bit(model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = ["--model", model, "--data", str(data), "--steps", "12", "--valid-every", "4", "--dropout", "0.3"]
    dropped = [*SMALL[:6], "--slice-dropout", "0.3", *told]
    assert main(["train", "multi30k", "--out", str(tmp_path / "a"), *dropped]) == 0
    from revtune.translation import TranslationLearner

    step, stopped = TranslationLearner.update, list[bool]()

    def until(self: TranslationLearner) -> float:
        if self.steps == 7 and not stopped:
            stopped.append(True)
            import signal

            signal.raise_signal(signal.SIGINT)
        return step(self)

    monkeypatch.setattr(TranslationLearner, "update", until)
    assert main(["train", "multi30k", "--out", str(tmp_path / "b"), *dropped]) == 130
    assert main(["train", "--resume", str(tmp_path / "b")]) == 0
    one, other = (checkpoint.read(tmp_path / name / "weights.safetensors") for name in "ab")
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--attend", "slice:999"], "--attend must be emb, slice:K"),
        (["--hidden", "15", "--attend", "emb"], "--hidden must be even"),
        (["--dropout", "1"], "--dropout must be a rate from 0 to below 1, got 1"),
        (["--source", "de"], "--source and --target must differ, got de for both"),
        (["--fewest", "1000000"], "the vocabulary is empty"),
        (["--longest", "1"], "no sentence pair of the train text can be used"),
        (["--lr", "0"], "--lr must be above 0"),
    ],
)
def test_what_cannot_be_is_named(
    words: list[str], told: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "multi30k", "--data", str(data), "--out", str(tmp_path / "r"), *words]) in (1, 2)
    assert told in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_run_that_is_through_or_begun_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(run)]) == 1
    assert "is finished: all 160 steps are done" in capsys.readouterr().err
    assert main(["translate", str(tmp_path)]) == 1
    assert "is no configuration of a translation run" in capsys.readouterr().err
    assert main(["translate", str(run), "--beam", "0"]) == 2
    assert "--beam must be at least 1, got 0" in capsys.readouterr().err
    assert main(["translate", str(run), "--file", str(tmp_path / "none")]) == 1
    assert "cannot read" in capsys.readouterr().err
