"""Runs of every kind that learnt a text as earlier versions read it go on with it, and are evaluated on it."""

import dataclasses
from pathlib import Path

import pytest

from revtune.program.data import readings, text_sources
from revtune.program.data.readings import BY_BYTES
from revtune.program.data.text_sources import load
from revtune.program.errors import Problem
from revtune.program.recipes import multi30k, output_dropout
from revtune.program.studies import tuned
from revtune.program.studies.compare import compare
from revtune.program.studies.compare import table as compare_table
from revtune.program.studies.compare.contest import Options
from revtune.program.studies.output_dropout import experiment
from revtune.program.tasks.loop import data_of
from revtune.program.translation import run as translation
from revtune.program.translation.saved_vocabulary import task_of
from revtune.program.translation.task import TranslationTask
from tests.tiny_contests import Seconds
from tests.tiny_pairs import write_pairs
from tests.tiny_words import LEARNING, TUNING, tiny, write_words

WORDS = 230
"""Less than all of the training text, and no number of whole lines."""


def earlier(patch: pytest.MonkeyPatch) -> None:
    """Have texts read as by earlier versions."""
    patch.setattr(readings, "BY_LINES", BY_BYTES)
    patch.setattr(text_sources.named, "__defaults__", (BY_BYTES,))
    patch.setattr(TranslationTask.__init__, "__defaults__", (None, BY_BYTES))


@pytest.fixture(autouse=True)
def _nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revtune.tuning.tuner.history.History.plot", lambda *_: None)
    for module in (experiment, compare_table):
        monkeypatch.setattr(module, "plot", lambda found: b"")


def test_a_tuned_run(tmp_path: Path) -> None:
    write_words(tmp_path)
    study = tiny(tmp_path, words=WORDS, learning=dataclasses.replace(LEARNING, steps=4))
    with pytest.MonkeyPatch.context() as patch:
        earlier(patch)
        run = tuned.start("ptb_lstm", tuned.Options(study=study, out=tmp_path / "run"))
        digest = load(study.text).digest()
    assert digest != load(study.text).digest() and data_of(run) == digest
    assert tuned.opened(run)[0].digest() == digest
    (run / "result.json").unlink()
    tuned.resume(run)
    text = tmp_path / "ptb/ptb.train.txt"
    text.write_text(text.read_text().replace(" a ", " b ", 1))
    with pytest.raises(Problem, match="the data are not those that .*run was trained on"):
        tuned.opened(run)


def test_a_contest_and_the_schedule_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_words(tmp_path)
    for module in ("studies.compare.search", "tasks.loop"):
        monkeypatch.setattr(f"revtune.program.{module}.Clock", Seconds)
    study = tiny(tmp_path, words=WORDS, learning=dataclasses.replace(LEARNING, patience=1))
    contest = Options(study=study, budget=12.0, out=tmp_path / "contest", contestants=("plain", "random"))
    rates: dict[str, object] = {"starts": (0.05,), "rates": (0.2,), "period": 4, "stn": TUNING, "delta": TUNING}
    own = {field.name: getattr(study, field.name) for field in dataclasses.fields(study)}
    rated = dataclasses.replace(output_dropout.recipe(), **{**own, **rates, "learning": LEARNING})
    with pytest.MonkeyPatch.context() as patch:
        earlier(patch)
        compare.run("ptb_lstm", contest)
        out = experiment.run(rated, tmp_path / "experiment")
    compare.run("ptb_lstm", dataclasses.replace(contest, budget=24.0))
    (out / "replayed/result.json").unlink()
    (out / "replayed/checkpoint.safetensors").unlink()
    (out / "replayed/weights.safetensors").unlink()
    (out / "replayed/metrics.jsonl").unlink()
    experiment.resume(out)
    assert data_of(out / "replayed") == data_of(out / "tuned-0.05")


def test_a_translation(tmp_path: Path) -> None:
    write_pairs(tmp_path, train=60)
    for path in (tmp_path / "multi30k/tok").glob("train*"):
        path.write_text(path.read_text().replace(" has ", " \u2028 "))
    study = multi30k.recipe()
    text = dataclasses.replace(study.text, data=tmp_path, fewest=1)
    net = dataclasses.replace(study.net, embedding=8, hidden=8, attend="emb")
    learning = dataclasses.replace(study.learning, steps=2, batch=20, valid_every=1)
    study = dataclasses.replace(study, text=text, net=net, learning=learning)
    with pytest.MonkeyPatch.context() as patch:
        earlier(patch)
        digest = TranslationTask(study).digest()
        run = translation.start("multi30k", translation.Options(study=study, out=tmp_path / "run"))
    with pytest.raises(Problem, match=r"U\+2028 ends a line inside line"):
        TranslationTask(study)
    assert task_of(run, study).digest() == digest
    (run / "result.json").unlink()
    translation.resume(run)
