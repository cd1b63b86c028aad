"""Trackers: told of all that a run measures, read back from their files, and no part of the run itself."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from revtune.program.cli.main import main
from revtune.program.errors import Problem
from revtune.program.language import trainer
from revtune.program.runs import tracking
from revtune.program.runs.metrics import last_step
from revtune.program.runs.tracking import Tracking
from tests.chunking import set_chunk_steps
from tests.tiny_pairs import write_pairs
from tests.tiny_runs import Died, Silent, assert_same, config, write_sums
from tests.tiny_words import write_words

TUNED = "--hidden 16 --embedding 8 --batch 4 --length 24 --steps 21 --valid-every 7 --save-every 5 --valid-batch 2"


class Kept:
    """A tracker that keeps what it is told, or fails at a step."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.told: list[tuple[int, dict[str, Any]]] = []
        self.fails_at, self.settings, self.finished = fails_at, dict[str, str](), False

    def start(self) -> None:
        pass

    def store_init_configuration(self, values: dict[str, str]) -> None:
        self.settings = values

    def log(self, values: dict[str, Any], step: int) -> None:
        if step == self.fails_at:
            raise ConnectionError("nobody answers\nat all")
        self.told.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_numbers_have_names_with_those_of_their_groups() -> None:
    facts = {"step": 3, "loss": 0.5, "layer_bits": {"RevGRU layer 0": 1.5}, "values": {"drop": {"a": 1}}}
    assert tracking.flat(facts) == {"step": 3, "loss": 0.5, "layer_bits/RevGRU layer 0": 1.5, "values/drop/a": 1}


def test_all_lines_are_told_and_the_run_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    monkeypatch.setattr(tracking, "opened", lambda *_: kept)
    monkeypatch.setattr(tracking, "check", lambda _: None)
    write_sums(tmp_path / "sums")
    one = config(tmp_path / "sums")
    run = trainer.start(one, tmp_path / "tracked", Silent(), track="wandb")
    assert_same(run.folder, trainer.start(one, tmp_path / "plain", Silent()).folder)
    assert [step for step, values in kept.told if "loss" in values] == list(range(1, 10))
    assert [step for step, values in kept.told if "valid_loss" in values] == [4, 8, 9]
    assert kept.finished and kept.settings["learning.steps"] == "9"
    assert kept.told[-1][0] == 9 and len(kept.told[-1][1]["sample"]) > 100
    assert all(type(value) in (int, float) for _, values in kept.told[:-1] for value in values.values())


def test_a_tracker_that_fails_is_left_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Kept(fails_at=3)
    monkeypatch.setattr(tracking, "opened", lambda *_: kept)
    monkeypatch.setattr(tracking, "check", lambda _: None)
    write_sums(tmp_path / "sums")
    run = trainer.start(config(tmp_path / "sums"), tmp_path / "run", Silent(), track="trackio")
    assert [step for step, _ in kept.told] == [1, 2] and not kept.finished
    assert last_step(run.metrics) == 9
    told = capsys.readouterr().err
    assert told == "revtune: trackio tracks no more: nobody answers; metrics.jsonl has all of it\n"


def test_one_that_cannot_begin_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ValueError("no key")

    monkeypatch.setattr(tracking, "opened", fails)
    monkeypatch.setattr(tracking, "check", lambda _: None)
    with pytest.raises(Problem, match="^--track wandb cannot begin: no key$"):
        Tracking("wandb", tmp_path)


@pytest.mark.parametrize(
    "name, needs",
    [
        ("tensorboard", "accelerate and tensorboard; pip install 'revtune[track]' installs it"),
        ("wandb", "accelerate and wandb; pip install accelerate wandb installs it"),
    ],
)
def test_a_package_that_is_missing_is_named_before_anything_is_learnt(
    name: str, needs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    write_sums(tmp_path / "sums")
    out = tmp_path / "run"
    told = ["train", "text", "--file", str(tmp_path / "sums"), "--out", str(out), "--track", name]
    assert main(told) == 2
    assert capsys.readouterr().err == f"revtune: --track {name} needs {needs}\n"
    assert not out.exists()


def test_what_is_no_tracker_is_refused_on_going_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(tmp_path), "--track", "paper"]) == 2
    told = capsys.readouterr().err
    assert told == "revtune: --track must be one of none, tensorboard, wandb, mlflow, trackio, got paper\n"


def test_none_is_imported_unless_it_is_named() -> None:
    code = "import sys, revtune.program.cli.train; print(*{'accelerate', 'tensorboard', 'wandb'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "\n"


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's files in a folder hold."""
    accumulator = events(folder)
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def events(folder: Path) -> Any:
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = module.EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


needs_tensorboard = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("accelerate", "tensorboard"))), reason="the extra track is missing"
)


@needs_tensorboard
def test_tensorboard_has_what_a_language_model_measured(tmp_path: Path) -> None:
    write_sums(tmp_path / "sums")
    out = tmp_path / "run"
    words = ["train", "text", "--file", str(tmp_path / "sums"), "--out", str(out), "--stn.warmup", "2"]
    assert main([*words, *TUNED.split(), "--tune", "stn", "--track", "tensorboard"]) == 0
    found = scalars(out)
    assert [step for step, _ in found["loss"]] == list(range(1, 22))
    assert [step for step, _ in found["valid_loss"]] == [7, 14, 21]
    assert [step for step, _ in found["resident_bytes"]] == [1, 11, 21]
    assert {"lr", "held_out_loss", "values/input_dropout", "scales/input_dropout"} <= found.keys()
    assert any("sample" in tag for tag in events(out).Tags()["tensors"])


@needs_tensorboard
def test_tensorboard_goes_on_where_the_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_chunk_steps(monkeypatch, 4)  # a pass of one chunk would store nothing
    write_sums(tmp_path / "sums")
    with pytest.raises(Died):
        trainer.start(config(tmp_path / "sums"), tmp_path / "run", Silent(dies_at=5), track="tensorboard")
    assert main(["train", "--resume", str(tmp_path / "run"), "--track", "tensorboard"]) == 0
    found = scalars(tmp_path / "run")
    assert [step for step, _ in found["loss"]] == list(range(1, 10))
    assert found["layer_bits/RevGRU layer 0"] == found["stored_bits"] and found["stored_bits"][0][0] == 1


@needs_tensorboard
def test_tensorboard_has_what_a_tuned_recipe_measured(tmp_path: Path) -> None:
    write_words(tmp_path / "data")
    out, sizes = tmp_path / "run", "--words None --width 16 --length 40 --batch 4 --steps 6 --valid-every 2"
    words = ["train", "ptb_lstm", "--data", str(tmp_path / "data"), "--out", str(out), "--model", "revlstm"]
    assert main([*words, *sizes.split(), "--delta.warmup", "1", "--track", "tensorboard"]) == 0
    found = scalars(out)
    assert [step for step, _ in found["loss"]] == [2, 4, 6] == [step for step, _ in found["scales/rnn.dropout"]]
    assert {"train_loss", "perplexity", "values/rnn.dropout", "resident_bytes", "best/test/perplexity"} <= found.keys()


@needs_tensorboard
def test_tensorboard_has_what_a_translator_measured(tmp_path: Path) -> None:
    data, out = write_pairs(tmp_path / "data", train=60), tmp_path / "run"
    sizes = "--embedding 16 --hidden 16 --attend emb+slice:4 --steps 20 --valid-every 10 --batch 20"
    words = ["train", "multi30k", "--data", str(data), "--out", str(out), *sizes.split()]
    assert main([*words, "--track", "tensorboard"]) == 0
    found = scalars(out)
    assert [step for step, _ in found["loss"]] == [10, 20] and {"bleu", "values/lr"} <= found.keys()
    assert any("sample" in tag for tag in events(out).Tags()["tensors"])


@pytest.mark.slow
def test_trackio_has_what_a_run_measured(tmp_path: Path) -> None:
    """In a process of its own, as trackio reads where it writes when it is imported."""
    pytest.importorskip("accelerate")
    pytest.importorskip("trackio")
    write_sums(tmp_path / "sums")
    out, folder = tmp_path / "run", tmp_path / "trackio"
    words = ["train", "text", "--file", str(tmp_path / "sums"), "--out", str(out), "--tune", "stn", "--stn.warmup", "2"]
    command = [sys.executable, "-m", "revtune", *words, *TUNED.split(), "--track", "trackio"]
    subprocess.run(command, env={**os.environ, "TRACKIO_DIR": str(folder)}, check=True, timeout=300)
    (file,) = folder.glob("*.db")
    with closing(sqlite3.connect(file)) as database:
        rows = database.execute("select step, metrics from metrics where run_name = 'run' order by id").fetchall()
    told = [(step, json.loads(text)) for step, text in rows]
    steps = {name: [step for step, numbers in told if name in numbers] for name in ("loss", "valid_loss", "lr")}
    assert steps == {"loss": [*range(1, 22)], "valid_loss": [7, 14, 21], "lr": [*range(1, 22)]}
    of_run = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [[facts["loss"] for facts in lines if "loss" in facts] for lines in (of_run, [facts for _, facts in told])]
    assert losses[0] == losses[1]
    assert any("values/input_dropout" in numbers for _, numbers in told)
