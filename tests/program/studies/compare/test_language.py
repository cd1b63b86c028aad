"""Contests of language models: everybody takes part, reversible or not, and they go on where they stopped."""

import dataclasses
import json
from pathlib import Path

import pytest

from revtune.program.cli.main import main
from revtune.program.errors import Problem
from revtune.program.language.config import LanguageStudy
from revtune.program.layers import Model
from revtune.program.recipes import ptb
from revtune.program.studies.compare import table as compare_table
from revtune.program.studies.compare.compare import run
from revtune.program.studies.compare.contest import CONTESTANTS, Contest, Contestant
from revtune.program.studies.compare.study import study_of
from tests.tiny_contests import language_contest
from tests.tiny_words import write_words

ALL = pytest.param(CONTESTANTS, marks=pytest.mark.slow)
SOME: tuple[Contestant, ...] = ("plain", "stn", "delta", "final", "random", "pbt", "found")


@pytest.mark.parametrize("contestants", [SOME, ALL])
@pytest.mark.parametrize("model", ["revgru", "lstm"])
def test_all_take_part(
    tmp_path: Path, model: Model, contestants: tuple[Contestant, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = language_contest(tmp_path, model, contestants, monkeypatch)
    folder = run("ptb", options)
    contest = Contest("ptb", options, folder)
    names = {"input_dropout", "output_dropout", "encode.dropout", "weight_drop", "dropout", "activation", "temporal"}
    names |= {"hidden_dropout"} if model == "revgru" else set()
    for one in contestants:
        found = contest.result(1, one)
        assert found is not None and found["values"].keys() == names
        assert found["valid"]["loss"] == min(facts["loss"] for facts in contest.validations(1, one))
        assert found["test"]["perplexity"] > 1
    assert "| perplexity | trials |" in (folder / "table.md").read_text()
    assert json.loads((folder / "results.json").read_text())["quoted"] == "perplexity"


def test_a_contest_goes_on_in_its_folder_also_where_its_text_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = language_contest(tmp_path, "gru", ("plain",), monkeypatch)
    run("ptb", options)
    stored = json.loads((tmp_path / "contest/config.json").read_text())
    assert stored["study"]["text"]["data"] == str(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "moved")
    text = dataclasses.replace(options.study.text, data=tmp_path / "moved")
    moved = dataclasses.replace(options, study=dataclasses.replace(options.study, text=text), budget=20.0)
    run("ptb", moved)
    assert json.loads((tmp_path / "contest/config.json").read_text()) == {**stored, "budget": 20.0}
    other = dataclasses.replace(moved, study=moved.study.at_seed(2))
    with pytest.raises(Problem, match="holds a contest with other settings"):
        run("ptb", other)


def test_the_command_takes_a_language_models_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare_table, "plot", lambda found: b"")
    write_words(tmp_path)
    words = "--words 200 --model lstm --embedding 4 --hidden 4 --length 6 --batch 4 --valid-every 2 --stn.warmup 1"
    who = "--contestants plain stn --budget 0.2 --clock cpu --data".split()
    assert main(["compare", "ptb", *words.split(), *who, str(tmp_path), "--out", str(tmp_path / "contest")]) == 0
    assert "ptb: best held-out loss" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["compare", "ptb", "--help"])
    told = capsys.readouterr().out
    help = " ".join(told.replace("\u2502", " ").split())
    assert "in a contest runs end so under a cosine alone, and earlier when their time is spent" in help
    assert "--words" in told and "--max-forget-bits" in told and "--tune " not in told
    assert isinstance(study_of(ptb, "paper"), LanguageStudy)
