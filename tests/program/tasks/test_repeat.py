"""The repeat study: what its cells come to, and that a study goes on where it stopped."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from revtune.errors import SettingError
from revtune.program import recipes
from revtune.program.cli.main import main
from revtune.program.errors import Problem
from revtune.program.studies.repeat import study as repeat_run
from revtune.program.studies.repeat.results import markdown, plot, summary
from revtune.program.studies.repeat.study import run
from revtune.program.tasks.repeat import MODELS, Cell, RepeatStudy, check, learn
from tests.backends import on_native

TINY = RepeatStudy(lengths=(3, 6), seeds=1, updates=2, hidden=4, batch=2, tested=8)


def figures(cell: Cell, right: float) -> dict[str, Any]:
    facts = {"updates": 2, "loss": 1.0, "right": right, "by_step": [right] * (cell.steps - 1)}
    return {**dataclasses.asdict(cell), **facts}


def here(study: RepeatStudy, cells: list[Cell], workers: int | None) -> Iterator[dict[str, Any]]:
    """`learned` without processes."""
    return (learn(study, cell) for cell in cells)


def test_forgetting_solves_what_no_forgetting_does_not() -> None:
    """The study's point, at one length and seed."""
    study = RepeatStudy(lengths=(20,), seeds=1, updates=100)
    right = {model: learn(study, Cell(model=model, steps=20, seed=1))["right"] for model in MODELS if "GRU" in model}
    assert right["RevGRU"] > 0.99
    assert right["nn.GRU"] > 0.99
    assert right["NF-RevGRU"] < 0.75


@pytest.mark.parametrize("model", MODELS)
def test_a_cell_depends_on_its_seed_alone(model: str) -> None:
    cell = Cell(model=model, steps=6, seed=3)
    first, again, other = (learn(TINY, one) for one in (cell, cell, dataclasses.replace(cell, seed=4)))
    assert first == again
    assert first["loss"] != other["loss"]
    assert first["updates"] == 2
    assert len(first["by_step"]) == 5


def test_learning_ends_when_the_task_is_solved() -> None:
    study = dataclasses.replace(TINY, updates=50, solved=1e9)
    assert learn(study, Cell(model="nn.GRU", steps=3, seed=0))["updates"] == 1


def test_a_study_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeat_run, "learned", here)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(TINY, whole)
    lines = (whole / "cells.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 * len(MODELS)
    cut.mkdir()
    (cut / "config.json").write_bytes((whole / "config.json").read_bytes())
    (cut / "cells.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:20])
    repeat_run.resume(cut)
    for name in ("cells.jsonl", "results.json", "table.md"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert (cut / "repeat.png").read_bytes().startswith(b"\x89PNG")


@on_native
def test_a_study_goes_on_by_the_backend_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeat_run, "learned", here)
    run(TINY, tmp_path)
    path = tmp_path / "cells.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    facts = json.loads(lines[0])
    del facts["seals"]  # as of an earlier version
    facts["arithmetic"] |= {"backend": "reference", "instructions": ""}
    path.write_bytes(json.dumps(facts).encode() + b"\n")
    monkeypatch.setenv("REVTUNE_BACKEND", "auto")
    with pytest.raises(Problem, match="REVTUNE_BACKEND=reference goes on as before, REVTUNE_BACKEND=native all"):
        repeat_run.resume(tmp_path)
    del facts["arithmetic"]
    path.write_bytes(json.dumps(facts).encode() + b"\n")
    repeat_run.resume(tmp_path)
    assert path.read_bytes().splitlines(keepends=True)[1:] == lines[1:]


def test_a_backend_that_there_is_not_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVTUNE_BACKEND", "fast")
    with pytest.raises(SettingError, match="REVTUNE_BACKEND must be one of"):
        run(TINY, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_finished_study_learns_nothing_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeat_run, "learned", here)
    run(TINY, tmp_path)
    monkeypatch.setattr(repeat_run, "learn", None)
    run(TINY, tmp_path)


@pytest.mark.slow
def test_cells_are_learned_in_processes(tmp_path: Path) -> None:
    study = dataclasses.replace(TINY, lengths=(3,), updates=1)
    run(study, tmp_path, workers=2)
    cells = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert sorted(cell["model"] for cell in cells) == sorted(MODELS)


def test_the_command_runs_and_resumes_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(repeat_run, "learned", here)
    monkeypatch.chdir(tmp_path)
    assert main("train repeat --lengths 3 --seeds 1 --updates 1 --hidden 4 --batch 2 --tested 8".split()) == 0
    told = capsys.readouterr().out
    assert "NF-RevLSTM, length 3, seed 0: " in told
    assert "Table, figures and plot are in runs/repeat-1" in told
    assert main(["train", "--resume", "runs/repeat-1"]) == 0
    assert "seed 0" not in capsys.readouterr().out


def test_the_larger_study_contains_the_default_one() -> None:
    recipe = recipes.find("repeat").recipe
    assert set(recipe().lengths) < set(recipe(full=True).lengths)
    assert recipe() == RepeatStudy()


def test_a_folder_of_another_study_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeat_run, "learned", here)
    run(TINY, tmp_path)
    with pytest.raises(Problem, match="holds a study with other settings"):
        run(dataclasses.replace(TINY, seeds=2), tmp_path)
    (tmp_path / "config.json").write_text('{"recipe": "ptb"}')
    with pytest.raises(Problem, match="is no configuration of the repeat study"):
        run(TINY, tmp_path)
    with pytest.raises(Problem, match="cannot read"):
        repeat_run.resume(tmp_path / "none")
    with pytest.raises(Problem, match="--workers must be at least 1, got 0"):
        run(TINY, None, workers=0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lengths": (1, 5)}, "--lengths must be two steps or more each, got 1 5"),
        ({"hidden": 7}, "--hidden must be even"),
        ({"tokens": 1}, "--tokens must be at least 2, got 1"),
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
        ({"max_forget_bits": 0.0}, "--max-forget-bits must be above 0, got 0.0"),
    ],
)
def test_impossible_studies_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(Problem, match=told):
        check(dataclasses.replace(TINY, **change))


def test_the_table_has_mean_and_range_over_seeds() -> None:
    study = dataclasses.replace(TINY, seeds=2)
    cells = [figures(cell, 0.25 + 0.5 * cell.seed) for cell in study.cells() if cell.model != "nn.LSTM"]
    rows = summary(study, cells)
    assert len(rows) == 2 * (len(MODELS) - 1)
    assert (rows[0]["right"], rows[0]["least"], rows[0]["most"]) == (0.5, 0.25, 0.75)
    assert "| RevGRU | 50±25 | 50±25 |" in markdown(study, cells)
    assert "| nn.LSTM |  |  |" in markdown(study, cells)
    assert plot(study, cells).startswith(b"\x89PNG")
