"""The queue of the translation study: what it trains, what it keeps, how it goes on. Nothing is trained here."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import translation, translation_memory, translation_speed
from benchmarks.jobs import STOPPED
from benchmarks.translation import Folders, main
from benchmarks.translation_jobs import Job, jobs, timed
from revtune.program.cli.train import runner_and_options
from revtune.program.errors import Problem
from revtune.program.translation.translator import Net

SIDE = {"positions": {"live": 10, "padded": 12, "unsorted": 20}}
OURS = {"stored": 0.9, "forgotten": 0.8, "saved": {"live": 10.0, "padded": 12.0, "unsorted": 20.0}}
BYTES = {"gru": {"held": 20e6, "step": 170e6, "encoder": 25e6, "decoder": 160e6}}
BYTES["revgru"] = {name: one / 10 for name, one in BYTES["gru"].items()}
BYTES |= {"lstm": BYTES["gru"], "revlstm": BYTES["revgru"]}


class Program:
    """In place of `revtune train`: writes what a run leaves, its result if it comes to its end."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.code = 0

    def __call__(self, words: list[str]) -> int:
        self.commands.append(words)
        folder = Path(words[-1])
        if "--resume" not in words:
            options = runner_and_options("multi30k", words[words.index("multi30k") + 1 :])[1]
            folder.mkdir(parents=True)
            facts = {"recipe": "multi30k", "study": dataclasses.asdict(options.study)}
            (folder / "config.json").write_text(json.dumps(facts, default=str))
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 227, "loss": 2.0}) + "\n")
        (folder / "vocabulary.json").write_text(json.dumps({"source": {"words": ["a"]}, "target": {"words": ["b"]}}))
        if not self.code:
            model = json.loads((folder / "config.json").read_text())["study"]["net"]["model"]
            side = SIDE | (OURS if model.startswith("rev") else {})
            seconds = 900.0 if model.startswith("rev") else 1000.0
            figures: dict[str, Any] = {"step": 227, "valid": {"loss": 2.0, "perplexity": 7.4}, "cpu": seconds}
            figures |= {"bleu": 34.5, "greedy_bleu": 33.0, "signature": "v", "epoch": 100}
            (folder / "result.json").write_text(json.dumps(figures | {"bits": {"encoder": side, "decoder": side}}))
        return self.code


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    found = Program()
    monkeypatch.setattr(translation, "call", found)
    monkeypatch.setattr(translation, "backend", lambda: "a kernel")
    monkeypatch.setattr(translation_memory, "measured", lambda job: needed(job.net))
    return found


def needed(net: Net) -> dict[str, float]:
    """Bytes of a training step; in blocks half."""
    return {name: one / (1 + net.loss_in_blocks) for name, one in BYTES[net.model].items()}


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "runs", tmp_path / "results")


def work(folders: Folders, *words: str) -> int:
    return main(["--runs", str(folders.runs), "--results", str(folders.results), *words])


def test_the_runs_are_those_of_the_study() -> None:
    names = [job.name for job in jobs(every=False)]
    assert len(set(names)) == 8
    assert {"gru-full", "lstm-full", "revgru-emb-slice20-3bits", "revlstm-emb-3bits"} < set(names)
    every = [job.name for job in jobs()]
    assert every[:8] == names and len(set(every)) == 8 + 4 + 8


@pytest.mark.parametrize("job", jobs(), ids=lambda job: job.name)
def test_a_command_says_its_whole_configuration(job: Job) -> None:
    assert runner_and_options("multi30k", job.command()[3:])[1].study == job.study()


def test_a_run_leaves_figures_and_a_table(folders: Folders, program: Program) -> None:
    assert work(folders, "--only", "gru-full") == work(folders, "--only", "revgru-emb-slice20-3bits") == 0
    kept = folders.kept(Job(model="revgru", attend="emb+slice:20"))
    assert kept is not None and kept["bleu"] == 34.5 and kept["bytes"]["step"] == 17e6
    rows = (folders.results / "README.md").read_text().splitlines()
    ours = [row for row in rows if row.startswith("| RevGRU")]
    assert ours[0] == "| RevGRU | emb+slice:20 | 3 bits | 34.50 | 33.00 | 7.40 | 227 |  |  |"
    less = ("17.0 (10.0x, 5.0x)", "2.5 (10.0x, 5.0x)", "2.0 (10.0x, 5.0x)", "16.0 (10.0x, 5.0x)")
    assert " | ".join(less) + " | 0.90, 0.80 | 10.0 / 12.0 / 20.0 |" in ours[1]
    assert "| nn.GRU, loss in blocks | full | | 85.0 | 12.5 | 10.0 | 80.0 |  |  |  |  |" in rows


def test_times_are_taken_in_turns_and_told(folders: Folders, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(studies: dict[str, Any]) -> dict[str, list[float]]:
        assert list(studies) == [job.name for job in timed()] and len(studies) == 10
        own = {"gru-full": 0.2, "gru-full-blocks": 0.1, "revgru-emb-slice20-3bits": 0.15}
        return {name: [own.get(name, 1.0)] * 7 for name in studies}

    monkeypatch.setattr(translation_speed, "timed", seconds)
    assert work(folders, "--only", "revgru-emb-slice20-3bits") == work(folders, "--time") == 0
    row = "| RevGRU | emb+slice:20 | 3 bits | 34.50 | 33.00 | 7.40 | 227 | 15 | 0.75, 1.50 |"
    assert row in (folders.results / "README.md").read_text().splitlines()


def test_what_is_done_is_left_and_what_was_begun_goes_on(
    folders: Folders, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    program.code = STOPPED
    assert work(folders) == STOPPED and len(program.commands) == 1
    capsys.readouterr()
    assert work(folders, "--list") == 0
    assert "at step 227 of 6000" in capsys.readouterr().out.splitlines()[0]
    program.code = 0
    assert work(folders, "--only", "gru-full") == 0 and "--resume" in program.commands[-1]
    assert work(folders, "--only", "gru-full") == 0 and len(program.commands) == 2


def test_another_recipe_is_refused(folders: Folders, program: Program) -> None:
    job = Job(model="gru")
    assert work(folders, "--only", job.name) == 0
    facts = json.loads(folders.file(job).read_text())
    facts["study"]["learning"]["lr"] = 1.0
    folders.file(job).write_text(json.dumps(facts))
    with pytest.raises(Problem, match="of another recipe"):
        folders.kept(job)


@pytest.mark.parametrize("damage", ["another", "half", "earlier"])
def test_figures_that_cannot_be_used_are_told_and_the_others_go_on(
    damage: str, folders: Folders, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(model="gru")
    assert work(folders, "--only", job.name) == 0
    facts, path = json.loads(folders.file(job).read_text()), folders.file(job)
    if damage == "another":
        facts["study"]["learning"]["lr"] = 1.0
    elif damage == "earlier":
        del facts["words"]
    path.write_text(json.dumps(facts)[: None if damage != "half" else -9])
    capsys.readouterr()
    assert work(folders, "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(jobs()) and f"{path} is " in lines[0] and "move it away" in lines[0]
    assert work(folders, "--only", "revgru-emb-slice20-3bits") == 0
    assert f"translation: left out: {path} is " in capsys.readouterr().err
    assert "| RevGRU |" in (folders.results / "README.md").read_text()
    assert work(folders) == 1 and len(program.commands) == 8, "all others were trained"


def test_memory_that_could_not_be_measured_is_measured_again(
    folders: Folders, program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(translation_memory, "measured", lambda job: {"error": "exit 1: no memory"})
        assert work(folders, "--only", "gru-full") == 1
    assert "the memory of gru-full could not be measured: exit 1: no memory" in capsys.readouterr().err
    assert "| nn.GRU | full |  | failed |" in (folders.results / "README.md").read_text()
    assert work(folders, "--list") == 0
    assert "done, but its memory could not be measured: exit 1" in capsys.readouterr().out.splitlines()[0]
    shutil.rmtree(folders.runs)
    assert work(folders, "--only", "gru-full") == 0 and len(program.commands) == 1, "it is not trained again"
    kept = folders.kept(Job(model="gru"))
    assert kept is not None and kept["bytes"] == BYTES["gru"] and kept["bleu"] == 34.5


def test_a_wrong_name_is_told(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    assert work(folders, "--only", "gru") == 2
    assert "--only must name a run, got 'gru'" in capsys.readouterr().err
