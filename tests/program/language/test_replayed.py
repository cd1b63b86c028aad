"""Runs that replay what another tuned: the same values at each step, bit for bit resumable, by `rt.replay` too."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import revtune as rt
from revtune.program.cli.main import main
from revtune.program.data.text_sources import load
from revtune.program.errors import Problem
from revtune.program.language import train as command
from revtune.program.language import trainer as train
from revtune.program.language.config import Config
from revtune.program.language.regularizers import WORDS, by_option, rates_of
from revtune.program.language.run import Run, held_out_loss
from revtune.program.layers import Model
from revtune.program.runs.followed import Followed
from revtune.program.tuning import Tuning
from revtune.tuning.conversion.replay import values_at
from tests import tiny_runs
from tests.tiny_runs import Died, Silent, assert_same, write_sums

TUNING = Tuning(warmup=1, ratio=2, hyper_lr=0.1)
RATES = {"layers": 2, "input_dropout": 0.2, "tie": True}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text"
    write_sums(path)
    return path


def config(text: Path, model: Model, **more: Any) -> Config:
    return dataclasses.replace(tiny_runs.config(text, model, RATES), stn=TUNING, tune="off", **more)


@pytest.fixture(scope="module", params=["revgru", "lstm"])
def tuned(request: pytest.FixtureRequest, text: Path) -> Run:
    told = dataclasses.replace(config(text, request.param), tune="stn")
    return train.start(told, text.parent / f"tuned-{request.param}", Silent())


def schedule_of(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.schedule.read_text())
    return found


def lines(run: Run, name: str) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [line for line in every if name in line]


def rates_in(net: Any, model: Model) -> dict[str, float]:
    """The rates at which a net drops, by option."""
    rnn = net.rnn
    if model in ("revgru", "revlstm"):
        found = {name: getattr(rnn.options, name, None) for name in ("input_dropout", "hidden_dropout", "weight_drop")}
        return {**found, "embedding_dropout": net.encode.dropout}
    found = {"input_dropout": rnn.input_drop.p, "output_dropout": rnn.output_drop.p, "dropout": rnn.dropout.p}
    assert rnn.layers[0].rates["weight_drop"]() == rnn.layers[1].rates["weight_drop"]()
    return {**found, "weight_drop": rnn.layers[1].rates["weight_drop"](), "embedding_dropout": net.encode.dropout}


def test_a_stored_nets_schedule_is_replayed_in_three_lines(tuned: Run) -> None:
    schedule, net = schedule_of(tuned), tuned.model()
    player = rt.replay(schedule, net)
    seen = list[float]()
    for step in range(10):
        player.step()
        values = by_option(values_at(schedule, step))
        for name, rate in rates_in(net, tuned.config().net.model).items():
            assert rate == values[name]
        assert player.values.temporal == values["temporal"]
        seen.append(player.values.activation)
    assert len(set(seen)) > 3
    for name in rates_of(tuned.config().net):
        assert schedule["rates"][WORDS if name == "embedding_dropout" else name], name


def test_a_run_follows_the_schedule_step_by_step(text: Path, tuned: Run, tmp_path: Path) -> None:
    told, schedule = config(text, tuned.config().net.model, replays=True), schedule_of(tuned)
    whole = train.start(told, tmp_path / "whole", Silent(), schedule)
    assert json.loads((whole.folder / "replayed.json").read_text()) == schedule
    for each in lines(whole, "valid_loss"):
        assert each["values"] == by_option(values_at(schedule, each["step"] - 1))
    assert held_out_loss(whole, "valid") == whole.best()["valid_loss"]
    part = tmp_path / "part"
    with pytest.raises(Died):
        train.start(told, part, Silent(dies_at=8), schedule)
    train.resume(Run(part), Silent())
    assert_same(part, whole.folder)
    plain = train.start(config(text, told.net.model), tmp_path / "plain", Silent())
    assert lines(plain, "loss")[0]["loss"] != lines(whole, "loss")[0]["loss"]


@pytest.mark.parametrize("model", ["revlstm", "gru"])
def test_constant_values_are_a_plain_run_at_these_rates(text: Path, model: Model) -> None:
    rates = {
        "input_dropout": 0.2, "output_dropout": 0.1, "embedding_dropout": 0.15, "weight_drop": 0.3, "dropout": 0.25,
    }  # fmt: skip
    told = config(text, model)
    corpus = load(told.text)
    tuner: Any = train.Trainer(dataclasses.replace(told, tune="stn"), corpus).learner
    names = {WORDS if name == "embedding_dropout" else name: rate for name, rate in rates.items()}
    places = tuner.schedule()["rates"]
    values = {name: [names.get(name, 0.0)] for name in places}
    at = dataclasses.replace(told, net=dataclasses.replace(told.net, **rates))  # type: ignore[arg-type]
    found = []
    for each, schedule in ((at, None), (told, {"steps": [0], "values": values, "rates": places})):
        trainer = train.Trainer(each, corpus, schedule)
        found.append([trainer.step()["loss"] for _ in range(5)])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_the_command_replays_and_takes_last_values(
    text: Path, tuned: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told, schedule = config(text, tuned.config().net.model), schedule_of(tuned)
    for name, followed in (("replay", Followed(replay=tuned.folder)), ("last", Followed(values_of=tuned.folder))):
        command.start("text", command.Options(config=told, followed=followed, out=tmp_path / name))
    last = {name: column[-1] for name, column in schedule["values"].items()}
    for each in lines(Run(tmp_path / "last"), "valid_loss"):
        assert each["values"] == by_option(last)
    assert "replayed, at that step: input_dropout " in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "replay")]) == 0


def test_what_cannot_be_followed_is_told(text: Path, tuned: Run, tmp_path: Path) -> None:
    told, out = config(text, "gru"), tmp_path / "run"
    follows = Followed(replay=tuned.folder)
    with pytest.raises(Problem, match="--replay is for a run that tunes nothing itself, got --tune stn"):
        command.start("text", command.Options(config=dataclasses.replace(told, tune="stn"), followed=follows, out=out))
    one_layer = dataclasses.replace(told, net=dataclasses.replace(told.net, layers=1))
    with pytest.raises(Problem, match="the schedule cannot be replayed: it has the hyperparameters activation, "):
        command.start("text", command.Options(config=one_layer, followed=follows, out=out))
    places = {**schedule_of(tuned), "rates": {name: ["nowhere.p"] for name in schedule_of(tuned)["rates"]}}
    with pytest.raises(Problem, match="the schedule cannot be replayed: the schedule sets 'nowhere.p' by "):
        train.start(config(text, tuned.config().net.model, replays=True), out, Silent(), places)
    assert not out.exists()


@pytest.mark.parametrize("option", ["--replay", "--values-of"])
def test_a_rate_given_beside_what_sets_it_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "ptb", "--tune", "off", option, "nowhere"]
    assert main([*words, "--input-dropout", "0.5"]) == 2
    told = f"--input-dropout must be left out beside {option}, which sets that rate, got 0.5"
    assert told in capsys.readouterr().err
    assert main([*words, "--input-dropout", "0.1"]) == 1  # the recipe's own
    assert "nowhere has no schedule to follow" in capsys.readouterr().err


def test_an_edited_or_lost_schedule_is_told(text: Path, tuned: Run, tmp_path: Path) -> None:
    told, schedule = config(text, tuned.config().net.model, replays=True), schedule_of(tuned)
    with pytest.raises(Died):
        train.start(told, tmp_path / "run", Silent(dies_at=8), schedule)
    path = tmp_path / "run/replayed.json"
    path.write_text(path.read_text().replace("0.2", "0.3", 1))
    with pytest.raises(Problem, match=r"replayed.json is not the file that .* was written with"):
        train.resume(Run(tmp_path / "run"), Silent())
    path.unlink()
    with pytest.raises(Problem, match=r"run has no schedule to follow: replayed.json is not there"):
        train.resume(Run(tmp_path / "run"), Silent())
