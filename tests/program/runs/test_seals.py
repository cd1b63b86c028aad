"""Runs of every kind: what was edited since is refused by name, or taken where that is meant; old ones are read."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from revtune.program.cli.main import main
from revtune.program.errors import Problem
from revtune.program.recipes import output_dropout
from revtune.program.runs import checkpoint
from revtune.program.runs.checkpoint import Saved
from revtune.program.runs.seals import Seals
from revtune.program.studies.compare import compare
from revtune.program.studies.compare import table as compare_table
from revtune.program.studies.output_dropout import experiment
from revtune.program.studies.repeat import study as repeat
from revtune.program.tasks.repeat import RepeatStudy, learn
from tests.tiny_contests import tiny_options
from tests.tiny_images import write_images
from tests.tiny_pairs import write_pairs
from tests.tiny_words import LEARNING, TUNING, write_words

TEXT = (
    "--hidden 16 --embedding 8 --batch 4 --length 16 --steps 4 --valid-every 2 --save-every 2 --tune off --unit word"
).split()
IMAGES = "--images 40 --width 4 --steps 4 --batch 4 --valid-every 2 --method plain".split()
PAIRS = "--embedding 8 --hidden 8 --attend emb --steps 4 --batch 20 --valid-every 2".split()


def test_files_of_tensors_carry_the_digests_that_they_were_written_with(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"seed": 1, "data": "/x"}')
    path, seals = tmp_path / "file", Seals.of(tmp_path)
    assert seals.digests.keys() == {"config.json"}
    whole = checkpoint.pack(Saved({"a": torch.ones(2)}, {"step": 1}, seals.digests))
    path.write_bytes(whole)
    assert checkpoint.read(path).seals == checkpoint.read_facts(path).seals == seals.digests
    seals.check(checkpoint.read(path).seals, path)
    for changed in (whole.replace(b'"seals"', b'"seams"'), whole.replace(b"config.json", b"confug.json")):
        path.write_bytes(changed)
        with pytest.raises(Problem, match="file is damaged: its contents do not match its checksum"):
            checkpoint.read(path)
    (tmp_path / "config.json").write_text('{"data": "/moved",\n "seed": 1}')
    Seals.of(tmp_path).check(seals.digests, path)  # where the data lie is no part of it
    (tmp_path / "config.json").write_text('{"seed": 2, "data": "/moved"}')
    with pytest.raises(Problem, match=r"config\.json is not the file that .*file was written with: .*--accept-edits"):
        Seals.of(tmp_path).check(seals.digests, path)
    Seals.of(tmp_path, accept_edits=True).check(seals.digests, path)
    Seals.of(tmp_path).check({}, path)  # an earlier version's


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "images")
    write_pairs(folder / "pairs", train=60)
    (folder / "text").write_text("the cat sat on the mat .\na dog ran .\n" * 60)
    return folder


KINDS: dict[str, Callable[[Path], list[str]]] = {
    "text": lambda data: ["--file", str(data / "text"), *TEXT],
    "mnist": lambda data: ["--data", str(data / "images"), *IMAGES],
    "multi30k": lambda data: ["--data", str(data / "pairs"), *PAIRS],
}
"""The options of a run, by recipe."""


@pytest.fixture(scope="module", params=KINDS)
def learnt(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has come to its end."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    assert main(["train", request.param, "--out", str(folder), *KINDS[request.param](data)]) == 0
    return folder


def told(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    capsys.readouterr()
    return main([str(word) for word in words]), capsys.readouterr().err


def test_an_edited_run_is_refused_by_name_or_taken(
    learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(learnt, tmp_path / "run")
    uses: list[list[object]] = [["evaluate", run], ["train", "--resume", run]]
    uses += {"text": [["generate", run]], "multi30k": [["translate", run, "--file", run / "line"]]}.get(learnt.name, [])
    assert told(capsys, "evaluate", run) == (0, "")
    for name in [path for path in ("config.json", "vocabulary.json") if (run / path).exists()]:
        whole = (run / name).read_text()
        (run / name).write_text(whole.replace('"seed": 1', '"seed": 2') + " ")
        for words in uses:
            code, sentence = told(capsys, *words)
            assert code == 1 and f"{run / name} is not the file that {run}/" in sentence, words
        assert told(capsys, "evaluate", run, "--accept-edits") == (0, "")
        assert f"{run} is finished" in told(capsys, "train", "--resume", run, "--accept-edits")[1]
        (run / name).write_text(whole)
    assert told(capsys, "evaluate", run) == (0, "")


def test_a_run_that_goes_on_edited_is_bound_to_the_edited_file(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", "text", "--out", str(run), *KINDS["text"](data)]) == 0
    config = run / "config.json"
    config.write_text(config.read_text().replace('"steps": 4', '"steps": 6'))
    assert told(capsys, "train", "--resume", run)[0] == 1
    assert told(capsys, "train", "--resume", run, "--accept-edits")[0] == 0
    assert told(capsys, "evaluate", run) == (0, "")


def test_what_a_file_says_is_told_by_its_name_and_a_pipe_is_refused(
    learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(learnt, tmp_path / "run")
    config = run / "config.json"
    settings = json.loads(config.read_text())
    settings.get("study", settings)["learning"]["lr"] = -1.0
    config.write_text(json.dumps(settings))
    for words in (["evaluate", run], ["train", "--resume", run]):
        assert told(capsys, *words) == (1, f"revtune: {config}: lr must be above 0, got -1.0\n")
    for name in ("config.json", "vocabulary.json", "weights.safetensors"):
        if (run / name).exists():
            (run / name).unlink()
            os.mkfifo(run / name)
            code, sentence = told(capsys, "evaluate", run)
            assert code == 1 and sentence.startswith(f"revtune: cannot read {run / name}: it is no regular file")
            shutil.copy(learnt / name, tmp_path / "whole")
            os.replace(tmp_path / "whole", run / name)


def test_what_was_learnt_is_of_use_without_the_checkpoint(
    learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(learnt, tmp_path / "run")
    path = run / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    assert told(capsys, "evaluate", run) == (0, "")
    assert f"{path} is damaged" in told(capsys, "train", "--resume", run)[1]
    if learnt.name == "text":
        (run / "weights.safetensors").unlink()
        assert "weights.safetensors is not there, but the first validation was" in told(capsys, "evaluate", run)[1]


def test_a_recipe_of_another_version_is_named(learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(learnt, tmp_path / "run")
    config = run / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "recipe": "novel"}))
    for words in (["evaluate", run], ["train", "--resume", run]):
        code, said = told(capsys, *words)
        assert code == 1 and said.startswith(f"revtune: {config} is of recipe 'novel', which is none of this revtune: ")


def test_cells_of_a_repeat_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeat, "plot", lambda *_: b"")
    monkeypatch.setattr(repeat, "learned", lambda study, cells, _: (learn(study, cell) for cell in cells))
    study = RepeatStudy(lengths=(3,), seeds=1, updates=2, hidden=4, batch=2, tested=8)
    out = repeat.run(study, tmp_path / "out")
    cells, config = out / "cells.jsonl", out / "config.json"
    repeat.resume(out)
    whole = cells.read_text()
    cells.write_text(whole.replace('"updates": 2', '"updates": 3', 1))
    with pytest.raises(Problem, match=r"cells\.jsonl has been edited in line 1"):
        repeat.resume(out)
    repeat.resume(out, accept_edits=True)
    cells.write_text(whole)
    config.write_text(config.read_text().replace('"tested": 8', '"tested": 9'))
    with pytest.raises(Problem, match=r"config\.json is not the file that .*cells\.jsonl was written with"):
        repeat.resume(out)
    repeat.resume(out, accept_edits=True)
    lines = [json.loads(line) for line in whole.splitlines()]
    assert all(line.pop("seals") for line in lines)
    cells.write_text("".join(json.dumps(line) + "\n" for line in lines))
    repeat.resume(out)  # an earlier version's


def test_contestants_of_the_schedule_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revtune.tuning.tuner.history.History.plot", lambda *_: None)
    monkeypatch.setattr(experiment, "plot", lambda found: b"")
    write_words(tmp_path / "data")
    sizes: dict[str, Any] = {"data": tmp_path / "data", "words": None, "width": 4, "length": 5, "learning": LEARNING}
    rates: dict[str, Any] = {"starts": (0.05,), "rates": (0.2,), "period": 4, "stn": TUNING, "delta": TUNING}
    out = experiment.run(dataclasses.replace(output_dropout.recipe(), **sizes, **rates), tmp_path / "out")
    experiment.resume(out)
    for name in ("tuned-0.05/result.json", "tuned-0.05/history.jsonl", "fixed-0.2/result.json", "config.json"):
        whole = (out / name).read_text()
        old, new = ('"period": 4', '"period": 5') if name == "config.json" else ('"step": ', '"step": 1')
        (out / name).write_text(whole.replace(old, new, 1))
        with pytest.raises(Problem, match=f"{name.rpartition('/')[2]} is not the file that .* was written with"):
            experiment.resume(out)
        (out / name).write_text(whole)
    experiment.resume(out)
    for name in ("checkpoint.safetensors", "weights.safetensors"):
        (out / "fixed-0.2" / name).write_bytes((out / "noisy" / name).read_bytes())
    (out / "fixed-0.2/result.json").unlink()
    with pytest.raises(Problem, match=r"fixed-0.2/checkpoint.safetensors is of noisy, not of fixed-0.2; put it back"):
        experiment.resume(out)


def test_contestants_of_a_contest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_table, "plot", lambda found: b"")
    options = dataclasses.replace(tiny_options(tmp_path, monkeypatch), contestants=("plain", "random"))
    out = compare.run("mnist", options)
    compare.run("mnist", options)
    for name in ("plain/result.json", "plain/metrics.jsonl", "random/result.json", "random/metrics.jsonl"):
        path = out / "seed-1" / name
        whole = path.read_text()
        path.write_text(whole.replace('"wall": ', '"wall": 0', 1).replace('"wall": 0', '"wall": 1', 1))
        with pytest.raises(Problem, match=f"{path} is not the file that .* was written with"):
            compare.run("mnist", options)
        compare.run("mnist", dataclasses.replace(options, accept_edits=True))
        path.write_text(whole)
    for name, old in (("journal.log", '"loss":'), ("terms.json", '"steps": ')):
        path = out / "seed-1/random" / name
        whole = path.read_text()
        path.write_text(whole.replace(old, f"{old}1", 1))
        with pytest.raises(Problem, match=f"{path} is not the file that"):
            compare.run("mnist", options)
        path.write_text(whole)
    compare.run("mnist", options)
    more = dataclasses.replace(options, seeds=2)
    compare.run("mnist", more)
    for name, file in (("plain", "weights.safetensors"), ("random", "journal.log")):
        first, second = (out / f"seed-{seed}" / name / file for seed in (1, 2))
        own = first.read_bytes()
        first.write_bytes(second.read_bytes())
        with pytest.raises(Problem, match=f"{first} is (of seed-2/{name}, not of seed-1/{name}|not the file)"):
            compare.run("mnist", more)
        first.write_bytes(own)
    compare.run("mnist", more)
    config = out / "config.json"
    config.write_text(config.read_text().replace('"momentum": 0.9', '"momentum": 0.8'))
    study = dataclasses.replace(options.study, learning=dataclasses.replace(options.study.learning, momentum=0.8))
    with pytest.raises(Problem, match=r"config\.json is not the file that .* was written with"):
        compare.run("mnist", dataclasses.replace(options, study=study))
