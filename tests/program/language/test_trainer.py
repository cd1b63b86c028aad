"""Training: it learns, it validates, and however it is stopped it goes on as if it never had been."""

import dataclasses
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from revtune.errors import BackendError, SettingError
from revtune.program.data import text_sources
from revtune.program.data.readings import BY_BYTES
from revtune.program.data.text import Corpus, streams, word_corpus
from revtune.program.data.text_sources import load
from revtune.program.errors import Problem
from revtune.program.files import write
from revtune.program.language import model as language
from revtune.program.language import trainer as train
from revtune.program.language.config import Config, Net
from revtune.program.language.evaluate import evaluate
from revtune.program.language.learner import PlainLearner
from revtune.program.language.learning import Learning
from revtune.program.language.run import Run, held_out_loss
from revtune.program.layers import Model
from revtune.program.runs import checkpoint
from revtune.program.runs.checkpoint import Saved
from revtune.program.tasks.learner import weight_optimizer
from revtune.reversible.kernel import backend as native
from tests.backends import on_native
from tests.tiny_runs import LEARNING, Died, Silent, assert_same, config, losses, write_sums

DROPPED = {"input_dropout": 0.2, "output_dropout": 0.2, "embedding_dropout": 0.2, "weight_drop": 0.2}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text"
    write_sums(path)
    return path


def test_a_run_learns_and_keeps_its_best_weights(text: Path, tmp_path: Path) -> None:
    done = train.start(config(text, steps=60, valid_every=20, lr=0.03), tmp_path / "run", Silent())
    told = losses(done.folder)
    assert [step for step, name, _ in told if name == "loss"] == list(range(1, 61))
    valid = {step: loss for step, name, loss in told if name == "valid_loss"}
    assert list(valid) == [20, 40, 60]
    assert min(valid.values()) < 3.0 < told[0][2]
    best = done.best()
    assert best == {"step": min(valid, key=valid.__getitem__), "valid_loss": min(valid.values())}
    assert held_out_loss(done, "valid") == best["valid_loss"]
    assert held_out_loss(done, "test") != best["valid_loss"]


@pytest.mark.parametrize(
    ("model", "backend"),
    [(model, "native") for model in ("revgru", "revlstm")]
    + [(model, "reference") for model in ("revgru", "revlstm", "gru", "lstm")],
    indirect=["backend"],
)
def test_a_run_that_died_goes_on_bit_for_bit(text: Path, tmp_path: Path, model: Model) -> None:
    """After a death at any kind of step: before the first checkpoint, at one, and between two."""
    told = config(text, model, net={**DROPPED, "layers": 2, "dropout": 0.1})
    whole = train.start(told, tmp_path / "whole", Silent())
    for step in (2, 6, 8):
        part = tmp_path / f"died-{step}"
        with pytest.raises(Died):
            train.start(told, part, Silent(dies_at=step))
        torch.rand(3)
        train.resume(Run(part), Silent())
        assert_same(part, whole.folder)


@on_native
def test_a_run_goes_on_by_the_backend_it_ran_on_or_by_one_that_is_named(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, part, old = (tmp_path / name for name in ("whole", "part", "old"))
    monkeypatch.setenv("REVTUNE_BACKEND", "reference")
    train.start(config(text), whole, Silent())
    for folder in (part, old):
        with pytest.raises(Died):
            train.start(config(text), folder, Silent(dies_at=5))
    unnamed = checkpoint.read(Run(old).checkpoint)
    del unnamed.facts["arithmetic"]
    Run(old).save(Run(old).checkpoint, unnamed)
    other = tmp_path / "other"
    shutil.copytree(part, other)

    monkeypatch.setenv("REVTUNE_BACKEND", "auto")
    with pytest.raises(Problem, match="part ran on plain torch .* REVTUNE_BACKEND=reference goes on as before, "):
        train.resume(Run(part), Silent())
    monkeypatch.setenv("REVTUNE_BACKEND", "reference")
    for folder in (part, old):
        train.resume(Run(folder), Silent())
        assert_same(folder, whole)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("REVTUNE_BACKEND", "native")
    train.resume(Run(other), Silent())
    assert f"{other} ran on plain torch" in capsys.readouterr().err
    assert checkpoint.read(Run(other).checkpoint).facts["arithmetic"]["backend"] == "native"


@pytest.mark.parametrize("value", ["fast", "native"])
def test_a_backend_that_cannot_be_had_leaves_no_folder(
    value: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVTUNE_BACKEND", value)
    monkeypatch.setattr(native, "find", lambda: native.KernelLookup(reason="there is no compiler"))
    with pytest.raises((SettingError, BackendError), match="REVTUNE_BACKEND"):
        train.start(config(text), tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()


def test_plateaus_and_varied_lengths_go_on_bit_for_bit(text: Path, tmp_path: Path) -> None:
    told = config(
        text, steps=24, optimizer="sgd", schedule="plateau", lr=4.0, patience=1, valid_every=2, warmup=0,
        length=70, length_spread=2.0, batch=20, weight_decay=1e-4,
    )  # fmt: skip
    whole = train.start(told, tmp_path / "whole", Silent())
    place = checkpoint.read(whole.checkpoint).facts["place"]
    assert place["falls"] > 0
    with pytest.raises(Died):
        train.start(told, tmp_path / "part", Silent(dies_at=20))
    train.resume(Run(tmp_path / "part"), Silent())
    assert_same(tmp_path / "part", whole.folder)


def test_a_run_begins_its_text_again_without_a_state(text: Path) -> None:
    told = config(text, length=400)
    trainer = train.Trainer(told, load(told.text))
    learner = trainer.learner
    assert isinstance(learner, PlainLearner)
    trainer.step()
    assert learner.state is not None
    assert trainer.progress.position == 400
    while trainer.progress.position:
        trainer.step()
    assert learner.state is None


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "revtune", *map(str, words)]


def options(text: Path, out: Path, steps: int, tune: str) -> list[str]:
    sizes = "--hidden 32 --embedding 8 --batch 8 --length 32 --valid-every 20 --save-every 7 --weight-drop 0.2"
    tuning = f"--tune {tune} --delta.warmup 4 --stn.warmup 4"
    return command("train", "text", "--file", text, "--out", out, "--steps", steps, *sizes.split(), *tuning.split())


def wait_for_lines(path: Path, number: int, process: subprocess.Popen[str]) -> None:
    while not path.exists() or path.read_bytes().count(b"\n") < number:
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.001)


def stopped(text: Path, out: Path, how: signal.Signals, tune: str) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own, sent a signal while it is on its way."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        options(text, out, 60, tune), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    wait_for_lines(out / "metrics.jsonl", 18, process)
    process.send_signal(how)
    told, complaint = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, told, complaint)


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["off", "delta", "stn"])
def test_kill_9_and_ctrl_c_lose_nothing(text: Path, tmp_path: Path, tune: str) -> None:
    killed = stopped(text, tmp_path / "killed", signal.SIGKILL, tune)
    assert killed.returncode == -signal.SIGKILL
    asked = stopped(text, tmp_path / "asked", signal.SIGINT, tune)
    assert asked.returncode == 130
    last = losses(tmp_path / "asked")[-1][0]
    goes_on = f"revtune train --resume {tmp_path / 'asked'} goes on"
    assert asked.stderr == f"revtune: stopped after step {last}; {goes_on}\n"
    resumed = command("train", "--resume", tmp_path / "killed")
    assert "validation" in subprocess.run(resumed, capture_output=True, text=True, check=True).stdout
    train.resume(Run(tmp_path / "asked"), Silent())
    train.start(Run(tmp_path / "killed").config(), tmp_path / "whole", Silent())
    assert_same(tmp_path / "killed", tmp_path / "whole")
    assert_same(tmp_path / "asked", tmp_path / "whole")


def test_a_full_disk_loses_no_checkpoint(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = config(text)
    whole = train.start(told, tmp_path / "whole", Silent())
    synced = os.fsync
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 9:
            raise OSError(28, "No space left on device")
        synced(descriptor)

    with monkeypatch.context() as patch, pytest.raises(Problem, match="No space left on device"):
        patch.setattr("os.fsync", full)
        train.start(told, tmp_path / "full", Silent())
    assert not list((tmp_path / "full").glob("*.partial"))
    assert checkpoint.read(Run(tmp_path / "full").checkpoint).facts["place"]["step"] == 3
    train.resume(Run(tmp_path / "full"), Silent())
    assert_same(tmp_path / "full", whole.folder)


def test_a_finished_run_is_not_resumed(text: Path, tmp_path: Path) -> None:
    done = train.start(config(text), tmp_path / "run", Silent())
    with pytest.raises(Problem, match="is finished: all 9 steps are done"):
        train.resume(done, Silent())


def test_checkpoints_that_are_not_the_runs_are_refused(text: Path, tmp_path: Path) -> None:
    done = train.start(config(text), tmp_path / "run", Silent())
    other = train.start(config(text, net={"layers": 2}), tmp_path / "other", Silent())
    whole = other.checkpoint.read_bytes()
    content = checkpoint.pack(dataclasses.replace(checkpoint.read(other.checkpoint), seals={}))
    foreign = checkpoint.pack(Saved({"a": torch.ones(1)}, {"step": 1}))
    for wrong, sentence in (
        (whole, r"config\.json is not the file that .*checkpoint\.safetensors was written with"),
        (content, "does not fit the model: .* is only in the file"),
        (content[:-9], "is damaged or no safetensors file"),
        (foreign, "is no checkpoint of a run: 'place' is missing"),
    ):
        write(done.checkpoint, wrong)
        with pytest.raises(Problem, match=sentence):
            train.resume(done, Silent())


def test_checkpoints_that_lack_something_are_refused(text: Path, tmp_path: Path) -> None:
    """Without its optimizer, its state or its facts a run would go on from elsewhere, and nobody would notice."""
    part = Run(tmp_path / "run")
    with pytest.raises(Died):
        train.start(config(text), part.folder, Silent(dies_at=5))
    saved = checkpoint.read(part.checkpoint)
    name = next(name for name in saved.tensors if name.startswith("optimizer/") and name.endswith("exp_avg_sq"))

    def without(prefix: str) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in saved.tensors.items() if not name.startswith(prefix)}

    for tensors, facts, sentence in (
        (without(name), saved.facts, "the optimizer's exp_avg_sq of .* is missing"),
        (without("optimizer/"), saved.facts, "the optimizer's exp_avg of .* is missing"),
        (without("state/"), saved.facts, "is no checkpoint of a run: row 24 without a recurrent state"),
        ({**saved.tensors, "state/1": torch.zeros(1)}, saved.facts, "it has state/0, state/1 for a state of 1 tensor"),
        ({**saved.tensors, "state/0": torch.zeros(1)}, saved.facts, r"state/0 has shape \(1,\) there"),
        (saved.tensors, {"place": saved.facts["place"], "threads": 1}, "'metrics' is missing"),
        (saved.tensors, {**saved.facts, "metrics": None}, "is no checkpoint of a run"),
        (saved.tensors, {**saved.facts, "metrics": -1}, "is no checkpoint of a run"),
        (saved.tensors, placed(saved, position=10**6), "position must be an integer from 0 to"),
        (saved.tensors, placed(saved, step=True), "step must be an integer from 0 to"),
        (saved.tensors, placed(saved, best="low"), "best must be a finite number or null"),
        ({**saved.tensors, "random/cpu": torch.zeros(3)}, saved.facts, "its random states are not torch's"),
    ):
        write(part.checkpoint, checkpoint.pack(Saved(tensors, facts)))
        with pytest.raises(Problem, match=sentence):
            train.resume(part, Silent())
    write(part.checkpoint, checkpoint.pack(saved))
    train.resume(part, Silent())


def placed(saved: Saved, **values: Any) -> dict[str, Any]:
    return {**saved.facts, "place": {**saved.facts["place"], **values}}


def test_a_run_that_lost_its_checkpoint_loses_nothing_more(text: Path, tmp_path: Path) -> None:
    part = Run(tmp_path / "run")
    with pytest.raises(Died):
        train.start(config(text), part.folder, Silent(dies_at=5))
    before = part.metrics.read_bytes()
    part.checkpoint.unlink()
    with pytest.raises(Problem, match=r"checkpoint.safetensors is not there, but metrics.jsonl knows of step 5"):
        train.resume(part, Silent())
    assert part.metrics.read_bytes() == before


def test_a_run_that_lost_its_best_weights_is_not_resumed(text: Path, tmp_path: Path) -> None:
    part = Run(tmp_path / "run")
    with pytest.raises(Died):
        train.start(config(text), part.folder, Silent(dies_at=8))
    saved = checkpoint.read(part.weights)
    for content, sentence in (
        (None, "weights.safetensors is not there, but the best validation was at step 4"),
        (b"broken", "weights.safetensors is damaged"),
        (checkpoint.pack(Saved({"a": torch.ones(1)}, saved.facts)), "weights.safetensors does not fit the model"),
        (checkpoint.pack(Saved(saved.tensors, {"step": 2})), "holds the weights of step 2, but those of step 4 are"),
    ):
        part.weights.unlink(missing_ok=True)
        if content is not None:
            part.weights.write_bytes(content)
        with pytest.raises(Problem, match=sentence):
            train.resume(part, Silent())


def test_what_is_not_finite_is_never_saved(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spoils(Silent):
        def step(self, facts: dict[str, Any]) -> None:
            if facts["step"] == 6:
                torch.nn.init.constant_(models[0].encode.weight, float("nan"))

    def build(net: Net, tokens: int, hypers: None) -> language.LanguageModel:
        models.append(made(net, tokens, hypers))
        return models[-1]

    models: list[language.LanguageModel] = []
    made = language.build
    monkeypatch.setattr("revtune.program.language.task.build", build)
    part = Run(tmp_path / "run")
    with pytest.raises(Problem, match="encode.weight is not finite after step 6; a lower learning rate may help"):
        train.start(config(text, valid_every=9), part.folder, Spoils())
    assert checkpoint.read(part.checkpoint).facts["place"]["step"] == 3
    monkeypatch.setattr(train, "held_out", lambda *_: float("nan"))
    with pytest.raises(Problem, match="the validation at step 4 failed: loss nan"):
        train.start(config(text), tmp_path / "other", Silent())


def test_an_output_that_takes_no_more_stops_the_run_with_a_sentence(text: Path, tmp_path: Path) -> None:
    class Full(Silent):
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def step(self, facts: dict[str, Any]) -> None:
            raise self.error

    for error, why in ((OSError(28, "No space left"), "No space left"), (SystemExit(1), "Broken pipe")):
        part = tmp_path / why
        with pytest.raises(Problem, match=rf"stopped after step 1, .*\({why}\).*--resume .*{why}' goes on"):
            train.start(config(text), part, Full(error))
        assert train.resume(Run(part), Silent())


def test_changed_data_are_refused(text: Path, tmp_path: Path) -> None:
    mine = tmp_path / "text"
    mine.write_bytes(text.read_bytes())
    with pytest.raises(Died):
        train.start(config(mine), tmp_path / "run", Silent(dies_at=5))
    mine.write_bytes(text.read_bytes() + b"!\n")
    with pytest.raises(Problem, match="the data are not those that .*run was trained on"):
        train.resume(Run(tmp_path / "run"), Silent())


def test_a_step_that_fails_is_named(text: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"step \d failed: "):
        train.start(config(text, optimizer="sgd", lr=1e38, clip=1e38), tmp_path / "run", Silent())


def test_text_too_short_for_its_streams_leaves_no_folder(text: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="the training text has .* too few for 9000 streams"):
        train.start(config(text, batch=9000), tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_is_named(text: Path, tmp_path: Path) -> None:
    for device in ("cuda:99", "meta", "abacus"):
        with pytest.raises(Problem, match=f"--device {device} cannot be used"):
            train.start(config(text, device=device), tmp_path / "run", Silent())


@pytest.mark.parametrize("model", ["revgru", "lstm"])
def test_the_loss_is_that_of_the_whole_text(model: Model) -> None:
    """Evaluating segment by segment is one long softmax cross-entropy."""
    torch.manual_seed(0)
    built = language.build(Net(model=model, embedding=4, hidden=4, layers=2), 5).eval()
    rows = streams(torch.randint(5, (60,)), 2, name="test")
    with torch.no_grad():
        logits, _ = built(rows[:-1].long())
    expected = F.cross_entropy(logits.flatten(0, 1).double(), rows[1:].flatten()).item()
    assert evaluate(built, rows, 7) == pytest.approx(expected, rel=1e-5)


def test_words_and_tied_weights_train(tmp_path: Path) -> None:
    words = [word for line in range(90) for word in ("the", "cat", str(line % 7), "<eos>")]
    corpus: Corpus = word_corpus(words, words, words, most=99)
    told = Config(recipe="x", net=Net(embedding=8, hidden=8, tie=True), learning=LEARNING)
    trainer = train.Trainer(told, corpus)
    before = trainer.step()["loss"]
    for _ in range(30):
        after = trainer.step()["loss"]
    assert after < before
    assert set(checkpoint.weights(trainer.model)) >= {"encode.weight"}
    assert "readout.weight" not in checkpoint.weights(trainer.model)


def test_the_cosine_rises_and_falls_by_step() -> None:
    learning = Learning(steps=100, warmup=10, lr=1.0)
    rates = [learning.rate(step, 0) for step in range(100)]
    assert rates[0] == 0.1
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert 0.05 < rates[-1] < 0.06


def test_a_plateau_quarters_and_length_scales_the_rate() -> None:
    learning = Learning(schedule="plateau", warmup=0, lr=20.0, length=70, length_spread=5.0)
    rates = [learning.rate(step, 2) for step in range(100)]
    assert rates == pytest.approx([20 / 16 * learning.length_of(step) / 70 for step in range(100)])
    assert max(rates) > 1.7 * min(rates)


def test_the_update_rule_has_its_settings() -> None:
    weights = [torch.nn.Parameter(torch.zeros(2))]
    for rule, momentum in (("sgd", 0.9), ("adam", None)):
        learning = Learning(optimizer=rule, lr=0.3, momentum=0.9, weight_decay=0.1)  # type: ignore[arg-type]
        made = weight_optimizer(learning)([{"params": weights}])
        assert (made.defaults["lr"], made.defaults["weight_decay"]) == (0.3, 0.1)
        assert made.defaults.get("momentum") == momentum and type(made).__name__.lower() == rule


def test_lengths_follow_from_the_step() -> None:
    learning = Learning(length=70, length_spread=5.0)
    lengths = [learning.length_of(step) for step in range(2000)]
    assert lengths == [learning.length_of(step) for step in range(2000)]
    assert 0.03 < sum(length < 50 for length in lengths) / 2000 < 0.07
    assert 68 < sum(lengths) / 2000 < 69
    assert Learning(length=9).length_of(3) == 9


def test_a_run_on_a_text_that_earlier_versions_cut_in_words_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "text", tmp_path / "run"
    path.write_text("alpha beta " * 201)
    with monkeypatch.context() as patch:
        patch.setattr(text_sources, "BY_LINES", BY_BYTES)
        with pytest.raises(Died):
            train.start(config(path), out, Silent(dies_at=5))
    run = train.resume(Run(out), Silent())
    assert losses(out)[-1][0] == LEARNING.steps
    assert math.isfinite(held_out_loss(run, "test"))
    path.write_text("alpha beta " * 202)
    with pytest.raises(Problem, match="the data are not those"):
        held_out_loss(run, "test")
