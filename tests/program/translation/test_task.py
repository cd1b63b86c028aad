"""The translation task: what a step learns from, the settings of the papers, and where a learner's state goes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from revtune.program.cli.train import runner_and_options
from revtune.program.data.buckets import batch
from revtune.program.data.pair_sources import PairUnit
from revtune.program.layers import Model
from revtune.program.translation.learner import TranslationLearner
from revtune.program.translation.task import Text, TranslationLearning, TranslationStudy, TranslationTask
from revtune.program.translation.translator import Net
from tests.tiny_pairs import write_pairs

NET = Net(embedding=8, hidden=8, attend="emb+slice:2", dropout=0.0, slice_dropout=0.0)
PLAIN = TranslationLearning(optimizer="sgd", lr=1.0, momentum=0.0, batch=6, clip=None)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TranslationTask:
    data = write_pairs(tmp_path_factory.mktemp("data"))
    return TranslationTask(TranslationStudy(text=Text(data=data), net=NET, learning=PLAIN))


def test_a_step_descends_the_mean_loss_of_a_word(task: TranslationTask) -> None:
    one, model = TranslationLearner(task), task.net()
    some = task.train_batch(0)
    loss = model.loss(some) / int(some.lengths.sum())
    loss.backward()
    assert one.update() == pytest.approx(loss.item(), rel=1e-6)
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        moved = weight.detach() - one.model.get_parameter(name).detach()
        torch.testing.assert_close(moved, weight.grad, atol=1e-6, rtol=1e-4)


def test_figures_are_means_over_words(task: TranslationTask) -> None:
    model = task.net().eval()
    pairs = task.pairs.splits["valid"].pairs
    total = sum(model.loss(batch([pair], task.pairs.target.start)).item() for pair in pairs)
    found = task.evaluate(model, "valid")
    assert found["loss"] == pytest.approx(total / sum(len(target) for _, target in pairs), rel=1e-5)


def test_generators_are_put_back_on_the_device_of_the_weights(
    task: TranslationTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    learner = "revtune.program.tasks.weight_learner"
    monkeypatch.setattr(f"{learner}.set_random_states", lambda _, device=None: asked.append(device))
    one = TranslationLearner(task)
    one.restore(one.state())
    assert asked == [torch.device("cpu")]


@pytest.mark.parametrize(("fall", "rate"), [(None, 1 / 16), (2.0, 1 / 4)])
def test_a_plateau_divides_the_rate_by_what_is_told(task: TranslationTask, fall: float | None, rate: float) -> None:
    learning = TranslationLearning(lr=1.0, schedule="plateau")
    learning = learning if fall is None else replace(learning, fall=fall)
    one = TranslationLearner(TranslationTask(replace(task.study, learning=learning)))
    one.progress.falls = 2
    one.set_rate()
    assert one.values() == {"lr": rate}


@pytest.mark.parametrize("name", ["multi30k", "iwslt14"])
@pytest.mark.parametrize(("model", "rate"), [("gru", 0.2), ("revgru", 0.2), ("revlstm", 0.5), ("lstm", 1.0)])
def test_in_full_the_settings_are_the_papers(name: str, model: Model, rate: float) -> None:
    """MacKay et al. 2018: 80 epochs of SGD at a rate of the model's own, halved on plateaus, clipped at 5."""
    for words in (["--model", model], [f"--model={model}"]):
        study: TranslationStudy = runner_and_options(name, ["--full", *words])[1].study
        assert study.net.model == model and study.learning == TranslationLearning(
            steps=80 * 454, batch=64, optimizer="sgd", lr=rate, momentum=0.0, schedule="plateau", fall=2.0, patience=1,
            clip=5.0, valid_every=454,
        )  # fmt: skip
        small: TranslationStudy = runner_and_options(name, words)[1].study
        assert (small.net.model, small.learning.lr, small.learning.fall) == (model, 2e-3, 4.0)
    assert runner_and_options(name, ["--full", "--model", model, "--lr", "3"])[1].study.learning.lr == 3.0


@pytest.mark.parametrize(("unit", "most"), [("word", 50_000), ("subword", 8_000)])
def test_sub_words_are_fewer_than_words(unit: PairUnit, most: int) -> None:
    assert runner_and_options("multi30k", ["--unit", unit])[1].study.text.vocabulary == most
    assert runner_and_options("iwslt14", ["--full", "--unit", unit, "--vocabulary", "7"])[1].study.text.vocabulary == 7


def test_vocabularies_that_are_given_are_used(task: TranslationTask, tmp_path: Path) -> None:
    other = replace(task.study, text=Text(data=write_pairs(tmp_path, train=9)))
    own, given = TranslationTask(other), TranslationTask(other, (task.pairs.source, task.pairs.target))
    assert len(own.pairs.source) < len(task.pairs.source) == len(given.pairs.source)
    assert len({task.digest(), own.digest(), given.digest()}) == 3
