"""Runs of every kind that were moved, with their data or away from them, are evaluated and resumed."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from revtune.program.cli.main import main
from revtune.program.runs.places import near, place
from revtune.program.studies.compare import compare
from revtune.program.studies.compare import table as compare_table
from tests.program.runs.test_seals import IMAGES, PAIRS, TEXT, told
from tests.tiny_contests import tiny_options
from tests.tiny_images import write_images
from tests.tiny_pairs import write_pairs
from tests.tiny_words import write_words

KINDS = {
    "text": ["--file", "data/text", *TEXT],
    "ptb": ["--data", "data", *TEXT[:-2], "--embedding", "16"],
    "mnist": ["--data", "data", *IMAGES],
    "multi30k": ["--data", "data", *PAIRS],
}
"""The options of a run in a folder beside its data, by recipe."""


@pytest.mark.parametrize("recipe", KINDS)
def test_a_run_is_found_its_data(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    (data := first / "data").mkdir(parents=True)
    (data / "text").write_text("the cat sat on the mat .\na dog ran .\n" * 60)
    for write in (write_images, write_pairs, write_words):
        write(data)
    monkeypatch.chdir(first)
    assert main(["train", recipe, "--out", "runs/a/run", *KINDS[recipe]]) == 0
    monkeypatch.chdir(tmp_path)
    first.rename(second)
    run = second / "runs/a/run"
    code, said = told(capsys, "evaluate", run, "--split", "valid")
    assert (code, said.count("is read in its place")) == (0, 1)
    (second / "data").rename(tmp_path / "elsewhere")
    moved = ["--file", "elsewhere/text"] if recipe == "text" else ["--data", "elsewhere"]
    assert told(capsys, "evaluate", run, *moved) == (0, "")
    (run / "result.json").unlink(missing_ok=True)
    code, said = told(capsys, "train", "--resume", run, *moved)
    assert code == 0 or f"{run} is finished" in said
    assert told(capsys, "train", "--resume", run)[0] == 1  # nothing is there, and nothing is guessed


def test_places_that_a_run_does_not_read_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (text := tmp_path / "text").write_text("the cat sat on the mat .\na dog ran .\n" * 60)
    run = tmp_path / "run"
    assert main(["train", "text", "--file", str(text), "--out", str(run), *TEXT]) == 0
    for words in (["evaluate", run], ["train", "--resume", run]):
        code, said = told(capsys, *words, "--data", tmp_path)
        assert (code, said) == (
            2,
            f"revtune: {run} is of recipe text, which reads no data set by name; leave --data out\n",
        )


def test_the_first_place_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, given = tmp_path / "runs/run", tmp_path / "data/text"
    folder.mkdir(parents=True)
    given.parent.mkdir()
    (folder / "config.json").write_text("{}")
    assert near(folder, file=given, data=None) == {"near": {"file": "../../data/text"}}
    assert place("file", None, folder) is None and place("file", given, folder) == given
    (folder / "config.json").write_text('{"near": {"file": "../../moved/text"}}')
    for name in ("runs/text", "runs/run/text", "moved/text", "data/text"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        assert place("file", given, folder) == tmp_path / name
        said = f"revtune: {given} is not there; {tmp_path / name} is read in its place\n"
        assert capsys.readouterr().err == ("" if name == "data/text" else said)
    assert place("file", given, folder, Path("now")) == Path("now").absolute()
    (folder / "config.json").write_text('{"near": [1]}')
    given.unlink()
    assert place("file", given, folder) == folder / "text"


def test_a_contest_takes_the_place_of_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_table, "plot", lambda found: b"")
    options = dataclasses.replace(tiny_options(tmp_path, monkeypatch), contestants=("plain", "random"))
    out = compare.run("mnist", options)
    whole = (out / "seed-1/random/result.json").read_bytes()
    shutil.move(tmp_path / "data", tmp_path / "moved")
    moved = dataclasses.replace(options, study=dataclasses.replace(options.study, data=tmp_path / "moved"))
    compare.run("mnist", moved)
    assert (out / "seed-1/random/result.json").read_bytes() == whole
    compare.run("mnist", dataclasses.replace(moved, budget=30.0))
    assert (out / "seed-1/random/result.json").read_bytes() != whole
