"""Language models that tune themselves: every rate moves, runs go on bit for bit, and what is kept is a plain net."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from revtune.program.data.text import Segment
from revtune.program.data.text_sources import load
from revtune.program.errors import Problem
from revtune.program.files import write
from revtune.program.language import trainer as train
from revtune.program.language.config import Config, check
from revtune.program.language.evaluate import evaluate
from revtune.program.language.model import build
from revtune.program.language.regularizers import PENALTIES, rates_of
from revtune.program.language.run import Run, held_out_loss
from revtune.program.language.tuned_learner import TunedLearner
from revtune.program.layers import Model
from revtune.program.runs import checkpoint
from revtune.program.runs.checkpoint import Saved
from revtune.program.tasks.task import Rule
from revtune.program.tuning import Tuned, Tuning
from revtune.tuning.tuner.mechanic import LISTS, MEMORIES
from tests import tiny_runs
from tests.tiny_runs import Died, Silent, assert_same, write_sums

TUNING = Tuning(warmup=2, hyper_lr=0.05, response_lr=0.5)
DEEP = {"layers": 2, "input_dropout": 0.2}
TIED = {"tie": True}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text"
    write_sums(path)
    return path


def config(text: Path, model: Model, tune: Tuned, net: dict[str, Any] | None = None, **learning: Any) -> Config:
    plain = tiny_runs.config(text, model, net, **learning)
    told = dataclasses.replace(plain, tune=tune, stn=TUNING, delta=TUNING)
    check(told)
    return told


def trainer_of(told: Config) -> tuple[train.Trainer, TunedLearner]:
    trainer = train.Trainer(told, load(told.text))
    assert isinstance(trainer.learner, TunedLearner)
    return trainer, trainer.learner


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("model", ["revgru", "revlstm", "gru", "lstm"])
@pytest.mark.parametrize("tune", ["delta", "stn"])
def test_all_rates_and_penalties_are_tuned_and_told(text: Path, tmp_path: Path, model: Model, tune: Tuned) -> None:
    told = config(text, model, tune, DEEP)
    run = train.start(told, tmp_path / "run", Silent())
    steps, valid = ([each for each in lines(run.folder) if name in each] for name in ("loss", "valid_loss"))
    assert [each["step"] for each in steps if "held_out_loss" in each] == [4, 6, 8]
    names = {*rates_of(told.net), *PENALTIES}
    for last, first in ((valid[-1]["values"][name], 0.2 if name == "input_dropout" else 0.05) for name in names):
        assert last != pytest.approx(first, rel=1e-3)
    assert valid[-1]["values"].keys() == valid[-1]["scales"].keys() == names
    assert names == set(rates_of(told.net)) | {"activation", "temporal"}
    best = run.best()
    assert best in valid
    schedule = json.loads(run.schedule.read_text())
    assert schedule["steps"] == [0, 4, 6, 8]
    assert schedule["values"]["weight_drop"][0] == pytest.approx(0.05)


@pytest.mark.parametrize("model", ["revlstm", "gru"])
@pytest.mark.parametrize(("tune", "net"), [("delta", TIED), ("stn", TIED), ("stn", DEEP)])
def test_the_weights_are_a_plain_nets(
    text: Path, tmp_path: Path, model: Model, tune: Tuned, net: dict[str, Any]
) -> None:
    told = config(text, model, tune, net)
    run = train.start(told, tmp_path / "run", Silent())
    plain, best = run.model(), run.best()
    assert type(plain) is type(build(told.net, 9))
    assert held_out_loss(run, "valid") == pytest.approx(best["valid_loss"], rel=1e-6)
    names = set(checkpoint.weights(build(told.net, 9))) | (
        {"readout.weight"} if (tune, net) == ("stn", TIED) else set()
    )
    assert set(checkpoint.weights(plain)) == names
    rnn: Any = plain.rnn
    rate = rnn.layers[0].rates["weight_drop"]() if model == "gru" else rnn.options.weight_drop
    assert rate == best["values"]["weight_drop"]
    assert plain.encode.dropout == best["values"]["embedding_dropout"]


@pytest.mark.parametrize(
    ("model", "tune", "net"),
    [("revgru", "delta", TIED), ("revlstm", "stn", TIED), ("lstm", "delta", DEEP), ("gru", "stn", TIED)],
)
def test_a_tuned_run_that_died_goes_on_bit_for_bit(
    text: Path, tmp_path: Path, model: Model, tune: Tuned, net: dict[str, Any]
) -> None:
    told = config(
        text, model, tune, net, optimizer="sgd", schedule="plateau", lr=2.0, patience=1, valid_every=2, steps=10,
        length=70, length_spread=2.0, batch=20, weight_decay=1e-4,
    )  # fmt: skip
    whole = train.start(told, tmp_path / "whole", Silent())
    part = tmp_path / "part"
    with pytest.raises(Died):
        train.start(told, part, Silent(dies_at=8))
    torch.rand(3)
    train.resume(Run(part), Silent())
    assert_same(part, whole.folder)
    assert Run(part).schedule.read_bytes() == whole.schedule.read_bytes()
    learnt = [
        [{**each, "seconds": 0, "resident_bytes": 0} for each in lines(folder)] for folder in (part, whole.folder)
    ]
    assert learnt[0] == learnt[1]


@pytest.mark.parametrize(
    ("model", "tune", "optimizer"),
    [("revgru", "off", "adam"), ("lstm", "off", "sgd"), ("revlstm", "stn", "adam"), ("gru", "delta", "sgd")],
)
def test_a_run_that_tunes_its_learning_rate_goes_on_bit_for_bit(
    text: Path, tmp_path: Path, model: Model, tune: Any, optimizer: Rule
) -> None:
    told = dataclasses.replace(config(text, model, "stn", lr_too=True, optimizer=optimizer), tune=tune)
    whole = train.start(told, tmp_path / "whole", Silent())
    rates = [each["lr"] for each in lines(whole.folder) if "loss" in each]
    given = [told.learning.rate(step, 0) for step in range(len(rates))]
    assert rates[0] > 0
    assert not any(one == pytest.approx(other, rel=1e-3) for one, other in zip(rates, given, strict=True))
    part = tmp_path / "part"
    with pytest.raises(Died):
        train.start(told, part, Silent(dies_at=8))
    train.resume(Run(part), Silent())
    assert_same(part, whole.folder)
    assert [each["lr"] for each in lines(part) if "loss" in each] == rates
    saved = checkpoint.read(Run(part).checkpoint)
    damaged: Any
    for damaged in (None, {"state": {"dict": []}}):
        facts = {**saved.facts, "mechanic": damaged}
        write(Run(part).checkpoint, checkpoint.pack(Saved(saved.tensors, facts)))
        with pytest.raises(Problem, match="is no checkpoint of this run: "):
            train.resume(Run(part), Silent())


def test_a_run_that_began_with_all_of_its_rate_goes_on_so(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = dataclasses.replace(config(text, "revgru", "stn", lr_too=True), tune="off")
    trainer = train.Trainer(told, load(told.text))
    assert trainer.mechanic is not None
    trainer.mechanic.start = 1.0
    trainer.mechanic.scales = [1.0 / len(MEMORIES)] * len(MEMORIES)
    for _ in range(3):
        trainer.step()
    state = trainer.mechanic.state_dict()
    earlier = {name: state[name] for name in ("displacements", *LISTS)}  # as its state was then
    monkeypatch.setattr(trainer.mechanic, "state_dict", lambda: earlier)
    saved = copy.deepcopy(trainer.saved(0, ""))
    again = train.Trainer(told, load(told.text))
    again.restore(saved, tmp_path)
    assert [again.step()["lr"] for _ in range(3)] == [trainer.step()["lr"] for _ in range(3)]


@pytest.mark.parametrize("model", ["revlstm", "lstm", "gru"])
def test_it_begins_as_the_plain_net_of_its_seed(text: Path, model: Model) -> None:
    told = config(text, model, "delta", {**DEEP, "max_forget_bits": None})
    tuned, _ = trainer_of(told)
    plain = train.Trainer(dataclasses.replace(told, tune="off"), load(told.text))
    losses = [evaluate(each.model, each.task.part("valid"), 8) for each in (tuned, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_held_out_streams_walk_on_and_begin_anew(text: Path) -> None:
    """Each segment follows the one before; the first of the text has no state to go on from, whatever is carried."""
    trainer, learner = trainer_of(config(text, "revgru", "stn", steps=40, length=20))
    seen, step = list[Segment](), learner.tuner.step

    def noting(batch: Any, held_out: Any = None) -> tuple[float, float | None]:
        seen.extend([held_out] if held_out is not None else [])
        return step(batch, held_out)

    learner.tuner.step = noting  # type: ignore[method-assign]
    for _ in range(40):
        trainer.step()
    rows = learner.task.part("tuned_on")
    once = next(number for number, each in enumerate(seen) if number and each.first)
    assert torch.equal(torch.cat([each.inputs for each in seen[:once]]), rows[:-1].long())
    assert [each.first for each in seen[: once + 1]] == [True, *[False] * (once - 1), True]
    assert torch.equal(seen[once].inputs, seen[0].inputs)
    states = learner.tuner.states
    assert states["train"].shape[1:] == (4, 8) and states["valid"].shape[1] == rows.shape[1]


def test_both_groups_follow_the_schedule(text: Path) -> None:
    trainer, learner = trainer_of(config(text, "gru", "delta"))
    rate = trainer.step()["lr"]
    assert [group["lr"] for group in learner.tuner.optimizer.param_groups] == [rate, 0.5 * rate]


def test_a_step_that_fails_is_named(text: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"step \d failed: "):
        train.start(
            config(text, "revgru", "stn", optimizer="sgd", lr=1e30, clip=1e30), tmp_path / "run", Silent()
        )  # fmt: skip


def test_checkpoints_of_other_tuners_are_refused(text: Path, tmp_path: Path) -> None:
    part = Run(tmp_path / "run")
    with pytest.raises(Died):
        train.start(config(text, "gru", "delta"), part.folder, Silent(dies_at=5))
    saved = checkpoint.read(part.checkpoint)
    for tensors, facts, sentence in (
        (saved.tensors, {**saved.facts, "tuner": None}, "is no checkpoint of this run: "),
        (saved.tensors, {name: each for name, each in saved.facts.items() if name != "tuner"}, "run: 'tuner'"),
        (dict(list(saved.tensors.items())[1:]), saved.facts, "is no checkpoint of this run: "),
        (saved.tensors, {**saved.facts, "place": {**saved.facts["place"], "step": 4}}, "tuner is at step 3, not 4"),
    ):
        write(part.checkpoint, checkpoint.pack(Saved(tensors, facts)))
        with pytest.raises(Problem, match=sentence):
            train.resume(part, Silent())
    write(part.checkpoint, checkpoint.pack(saved))
    train.resume(part, Silent())
