"""The command that a page gives to repeat a run, read as a command line."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from revtune.program import recipes
from revtune.program.cli.options import parse
from revtune.program.cli.train import runner_and_options
from revtune.program.report import contest, translation
from revtune.program.report.settings import listed, repeating
from revtune.program.studies.compare.contest import Options as ContestOptions
from revtune.program.studies.compare.study import study_of


def words_of(command: str) -> list[str]:
    program, *words = shlex.split(command)
    assert program == "revtune"
    return words


def test_a_language_models_command_gives_its_settings() -> None:
    usual = recipes.find("text").recipe("small")
    net = dataclasses.replace(usual.net, hidden=96, forgetting=False, max_forget_bits=None)
    text = dataclasses.replace(usual.text, file=Path("/a text"), unit="word")
    learning = dataclasses.replace(usual.learning, steps=60, lr=0.002)
    stn = dataclasses.replace(usual.stn, warmup=7, tune_scales=True)
    config = dataclasses.replace(usual, net=net, text=text, learning=learning, stn=stn, tune="stn")
    command, name, *arguments = words_of(repeating(["train", "text"], config, usual))
    assert (command, name) == ("train", "text")
    assert runner_and_options(name, arguments)[1].config == config
    assert repeating(["train", "text"], usual, usual) == "revtune train text"


@pytest.mark.parametrize("recipe", ["ptb_lstm", "fashion"])
def test_a_tuned_recipes_command_gives_its_settings(recipe: str) -> None:
    usual = recipes.find(recipe).study("paper")
    learning = dataclasses.replace(usual.learning, steps=9, clip=None)
    delta = dataclasses.replace(usual.delta, hyper_lr=0.5, tune_scales=not usual.delta.tune_scales)
    study = dataclasses.replace(usual, learning=learning, delta=delta, seed=4)
    words = ["train", recipe, "--size", "paper", "--method", "stn"]
    _, name, *arguments = words_of(repeating(words, study, usual))
    options = runner_and_options(name, arguments)[1]
    assert (options.study, options.method, options.size) == (study, "stn", "paper")


def test_a_signals_command_gives_its_settings() -> None:
    usual = recipes.find("digits").study("full")
    learning = dataclasses.replace(usual.learning, steps=9, clip=None)
    study = dataclasses.replace(usual, learning=learning, model="lstm", truncate=50, lasting=None, speaker="theo")
    _, name, *arguments = words_of(repeating(["train", "digits", "--size", "full"], study, usual))
    options = runner_and_options(name, arguments)[1]
    assert (options.study, options.method, options.size) == (study, "plain", "full")


@pytest.mark.parametrize("model", ["revgru", "lstm"])
def test_a_translators_command_gives_its_settings(model: Any) -> None:
    usual = recipes.find("multi30k").recipe(model=model, unit="subword")
    text = dataclasses.replace(usual.text, source=usual.text.target, target=usual.text.source)
    study = dataclasses.replace(usual, text=text, learning=dataclasses.replace(usual.learning, steps=12), seed=2)
    _, name, *arguments = words_of(translation.again("multi30k", study))
    assert runner_and_options(name, arguments)[1].study == study


def test_a_studys_command_gives_its_settings() -> None:
    usual = recipes.find("repeat").recipe()
    study = dataclasses.replace(usual, lengths=(5, 9), seeds=1)
    _, name, *arguments = words_of(repeating(["train", "repeat"], study, usual))
    assert runner_and_options(name, arguments)[1].study == study


@pytest.mark.parametrize("recipe", ["fashion", "ptb", "wikitext2", "text", "stdlib"])
def test_a_contests_command_gives_its_settings(recipe: str) -> None:
    usual: Any = study_of(recipes.find(recipe), "small")
    study = dataclasses.replace(usual.at_seed(4), stn=dataclasses.replace(usual.stn, warmup=7))
    settings = {
        "recipe": recipe, "study": json.loads(json.dumps(dataclasses.asdict(study), default=str)), "seeds": 3,
        "budget": 20.0, "clock": "cpu", "contestants": ["plain", "delta"], "pbt": {"members": 4, "interval": 2},
        "size": "small",
    }  # fmt: skip
    _, name, *arguments = words_of(contest.again(settings, Path("config.json")))
    kind: Any = ContestOptions
    default = ContestOptions(study=usual)
    options = parse(kind[type(usual)], arguments, f"compare {recipe}", default=default, flat=False)
    assert (name, options.study, options.seeds, options.budget, options.clock) == (recipe, study, 3, 20.0, "cpu")
    assert options.contestants == ("plain", "delta") and options.pbt.members == 4


def test_settings_have_names_with_those_of_their_groups(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": {"b": 1, "c": "x"}, "d": [1, 2], "e": null, "near": {"file": "y"}}')
    assert listed(path) == {"a.b": "1", "a.c": "x", "d": "[1, 2]", "e": "null"}
