"""Language models as a task: what contests learn is what `revtune train` learns."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from revtune.program.data.text import Segment
from revtune.program.language import regularizers
from revtune.program.language import trainer as train
from revtune.program.language.config import Config, LanguageStudy
from revtune.program.language.evaluate import evaluate
from revtune.program.language.model import RewindingLanguageModel, StoringLanguageModel
from revtune.program.language.run import Run, held_out_loss
from revtune.program.language.task import LanguageTask
from revtune.program.layers import Model
from revtune.program.runs.checkpoint import packed, unpacked
from revtune.program.tasks.learner import Learner
from revtune.program.tasks.plain_learner import PlainLearner
from revtune.program.tasks.task import METHODS, Method
from revtune.program.tasks.tuned_learner import learner
from revtune.program.tuning import Tuning
from revtune.tuning.hypers.constants import Constants
from tests import tiny_runs
from tests.tiny_runs import Silent, write_sums

TUNING = Tuning(warmup=1, ratio=1, hyper_lr=0.05)
MODELS: tuple[Model, ...] = ("revgru", "revlstm", "gru", "lstm")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text"
    write_sums(path)
    return path


def config(text: Path, model: Model = "revgru", **learning: Any) -> Config:
    plain = tiny_runs.config(text, model, {"layers": 2, "input_dropout": 0.2, "tie": True}, **learning)
    return dataclasses.replace(plain, stn=TUNING, delta=TUNING)


def learnt(one: Learner, steps: int) -> list[float]:
    return [one.step() for _ in range(steps - one.steps)]


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_batches_are_those_that_a_run_reads(text: Path, monkeypatch: pytest.MonkeyPatch, spread: float) -> None:
    told, seen = config(text, "gru", length=60, length_spread=spread), list[Segment]()
    trainer = train.Trainer(told, LanguageTask(told).corpus)

    def noting(batch: Segment, rate: float) -> dict[str, float]:
        seen.append(batch)
        return {"loss": 0.0}

    monkeypatch.setattr(trainer.learner, "update", noting)
    for _ in range(60):
        trainer.step()
    task = LanguageTask(told)
    assert [batch.first for batch in seen].count(True) > 1
    for step in (59, *range(60)):  # also from any step on
        batch = task.train_batch(step)
        assert torch.equal(batch.inputs, seen[step].inputs) and torch.equal(batch.targets, seen[step].targets)
        assert batch.first == seen[step].first
    assert ({len(batch.inputs) for batch in seen[:5]} == {60}) == (not spread)


@pytest.mark.parametrize("model", MODELS)
def test_hyperparameters_are_the_nets_rates_and_both_penalties(text: Path, model: Model) -> None:
    task = LanguageTask(config(text, model))
    hypers = Constants(task.hypers())
    values = regularizers.by_option(hypers.values())
    rates = regularizers.rates_of(task.study.net)
    assert values.keys() == {*rates, "activation", "temporal"} and ("hidden_dropout" in rates) == (model in MODELS[:2])
    assert values["input_dropout"] == 0.2 and {values[name] for name in values.keys() - {"input_dropout"}} == {0.05}
    spaces = task.spaces()
    assert spaces.keys() == task.hypers().keys() and spaces["temporal"].log and not spaces["input_dropout"].log
    kind = RewindingLanguageModel if task.streams else StoringLanguageModel
    assert isinstance(task.net(hypers), kind)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["revlstm", "lstm"])
def test_it_learns_by_every_method_and_goes_on_bit_for_bit(text: Path, model: Model, method: Method) -> None:
    told = config(text, model, length_spread=2.0, optimizer="sgd", lr=0.5, momentum=0.9)
    task = LanguageTask(told)
    whole = learner(task, method)
    losses, end = learnt(whole, 8), whole.validate()["loss"]
    part = learner(task, method)
    learnt(part, 5)
    part.validate()
    state = unpacked(packed(part.state()))
    again = learner(LanguageTask(told), method)
    torch.rand(3)
    again.restore(state)
    assert learnt(again, 8) == losses[5:]
    assert again.validate()["loss"] == end


def test_a_plain_net_drops_and_penalizes_as_it_is_told(text: Path) -> None:
    """A penalty is in its loss, and a rate that is put acts from the next batch on."""
    for model in ("revgru", "gru"):
        task = LanguageTask(config(text, model))
        still = dict.fromkeys(task.hypers(), 0.0)
        losses = list[float]()
        for changed in ({}, {"temporal": 5.0}, {"encode.dropout": 0.9}, {"weight_drop": 0.9}):
            one = PlainLearner(task, {**still, **changed})
            losses.append(one.step())
            one = PlainLearner(task, still)
            one.hypers.put(changed)
            assert one.step() == losses[-1]
        assert losses[1] > losses[0] and len(set(losses)) == 4


@pytest.mark.parametrize("model", ["revlstm", "gru"])
def test_it_is_evaluated_as_a_run_is(text: Path, tmp_path: Path, model: Model) -> None:
    told = config(text, model, steps=4)
    run = train.start(told, tmp_path / "run", Silent())
    task, net = LanguageTask(told), run.model()
    for split in ("valid", "test"):
        assert task.evaluate(net, split)["loss"] == held_out_loss(Run(run.folder), split)
    assert task.part("tuned_on").shape[1] == 4 and task.part("valid").shape[1] == 2


def test_it_begins_as_a_run_of_its_seed(text: Path) -> None:
    told = config(text, "revlstm", seed=7)
    task = LanguageTask(told)
    trainer = train.Trainer(told, task.corpus)
    rows = task.part("valid")
    assert evaluate(PlainLearner(task).model, rows, 8) == evaluate(trainer.model, rows, 8)  # type: ignore[arg-type]
    assert task.study.seed == 7 and told.at_seed(8).learning.seed == 8


def test_a_contests_settings_are_checked_and_absolute(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(text.parent)
    told = config(Path("text"))
    assert told.checked().text.file == text
    other = dataclasses.replace(told, text=dataclasses.replace(told.text, file=Path("/elsewhere/text")))
    assert told.at_places(other) == other
    assert isinstance(told, LanguageStudy)
