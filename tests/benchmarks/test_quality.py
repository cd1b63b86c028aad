"""The queue of the quality study: what it trains, what it keeps, how it goes on. Nothing is trained here."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks import quality
from benchmarks.jobs import STOPPED, alone
from benchmarks.quality import EPOCHS, Folders, Job, chosen, figures, jobs, main, table
from revtune.program.cli.train import runner_and_options
from revtune.program.errors import Problem

EPOCH = 10
LAST = EPOCHS * EPOCH


@pytest.fixture(autouse=True)
def short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "EPOCH", EPOCH)


def lines(perplexity: float, last: int = LAST, **more: float) -> list[dict[str, Any]]:
    """Measurements of a run as far as a step; its second validation is its best."""
    found: list[dict[str, Any]] = []
    for step in range(1, last + 1):
        found.append({"step": step, "loss": 5.0, "seconds": 30.0, **more})
        if step % EPOCH == 0:
            worse = 0 if step == 2 * EPOCH else 0.1
            found.append({"step": step, "valid_loss": math.log(perplexity) + worse})
    return found


class Program:
    """In place of `revtune train`: writes what a run leaves, up to a step at most, and remembers its commands."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.reached = LAST
        self.code = 0

    def __call__(self, words: list[str]) -> int:
        self.commands.append(words)
        if "--resume" not in words:
            config = runner_and_options("ptb", words[words.index("ptb") + 1 :])[1].config
            (folder := Path(words[-1])).mkdir(parents=True)
            (folder / "config.json").write_text(config.json())
        text = "".join(json.dumps(line) + "\n" for line in lines(100.0, self.reached))
        (Path(words[-1]) / "metrics.jsonl").write_text(text)
        return self.code


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    found = Program()
    monkeypatch.setattr(quality, "call", found)
    monkeypatch.setattr(quality, "backend", lambda: "a kernel")
    return found


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "runs", tmp_path / "results")


def work(folders: Folders, *words: str) -> int:
    return main(["--runs", str(folders.runs), "--results", str(folders.results), *words])


def test_the_runs_are_those_of_the_study() -> None:
    names = [job.name for job in jobs()]
    assert len(set(names)) == len(names) == 12 + 6 + 2 + 4
    assert {"gru-200-seed3", "revgru-200-2bits-seed1", "revlstm-200-unlimited-seed1", "lstm-650-seed1"} < set(names)
    ours = [job.reversible for job in jobs() if job.units == 200]
    assert ours == sorted(ours), "torch's layers come first"


@pytest.mark.parametrize("job", jobs(), ids=lambda job: job.name)
def test_a_command_says_its_whole_configuration(job: Job) -> None:
    words = job.command()
    assert words[:3] == ["revtune", "train", "ptb"]
    assert runner_and_options("ptb", words[3:])[1].config == job.config()


def test_all_runs_share_their_recipe() -> None:
    shared = [job.config() for job in jobs()]
    assert len({(c.net.input_dropout, c.net.output_dropout, c.net.tie, c.net.layers) for c in shared}) == 1
    assert len({(c.learning.steps, c.learning.batch, c.learning.length, c.learning.lr) for c in shared}) == 1


def test_the_queue_stops_before_the_reversible_runs(folders: Folders, program: Program) -> None:
    assert work(folders) == 0
    assert len(program.commands) == 8
    assert work(folders, "--reversible") == 0
    assert len(program.commands) == len(jobs())
    assert work(folders, "--reversible") == 0
    assert len(program.commands) == len(jobs()), "what is kept is not trained again"
    assert len((folders.results / "README.md").read_text().split("| RevGRU |")) == 1 + 5


def test_a_kept_run_has_its_figures(folders: Folders, program: Program) -> None:
    job = Job(model="revgru", units=650)
    assert work(folders, "--only", job.name) == 0
    found = folders.kept(job)
    assert found is not None
    assert found["perplexity"] == pytest.approx(100)
    assert found["final_perplexity"] == pytest.approx(100 * math.exp(0.1))
    assert (found["best_step"], found["updates"], found["epochs"]) == (2 * EPOCH, LAST, EPOCHS)
    assert (found["seed"], found["backend"], found["config"]["net"]["hidden"]) == (1, "a kernel", 650)


def test_a_stopped_run_goes_on(folders: Folders, program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    program.reached, program.code = 25, STOPPED
    assert work(folders) == STOPPED
    assert len(program.commands) == 1, "nor does the next one begin"
    assert main(["--list", "--runs", str(folders.runs), "--results", str(folders.results)]) == 0
    assert f"at step 25 of {LAST}" in capsys.readouterr().out
    program.reached, program.code = LAST, 0
    assert work(folders, "--only", jobs()[0].name) == 0
    assert program.commands[1][-2:] == ["--resume", str(folders.run(jobs()[0]).folder)]
    assert folders.standing(jobs()[0]) == "done"


def test_a_run_that_ended_unseen_is_kept_without_training(folders: Folders, program: Program) -> None:
    job = jobs()[0]
    assert work(folders, "--only", job.name) == 0
    folders.file(job).unlink()
    assert work(folders, "--only", job.name) == 0
    assert len(program.commands) == 1
    assert folders.kept(job)


def test_a_run_that_fails_leaves_the_next_its_turn(folders: Folders, program: Program) -> None:
    program.code = 1
    assert work(folders) == 1
    assert len(program.commands) == 8
    assert not folders.kept(jobs()[0])


def test_a_run_of_another_recipe_is_refused(
    folders: Folders, program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = jobs()[0]
    assert work(folders, "--only", job.name) == 0
    monkeypatch.setattr(quality, "RATE", 1e-3)
    assert work(folders, "--only", job.name) == 1
    folders.file(job).unlink()
    assert work(folders, "--only", job.name) == 1
    assert capsys.readouterr().err.count("of another recipe") >= 2
    assert len(program.commands) == 1


def test_two_queues_do_not_share_a_folder(folders: Folders, program: Program) -> None:
    with alone(folders.runs):
        assert work(folders) == 1
    assert not program.commands


def test_a_pause_is_no_training_time() -> None:
    paused = lines(100.0)
    paused[50]["seconds"] = 3600.0
    assert figures(paused)["seconds"] == pytest.approx(LAST * 30)
    assert figures(paused)["step_seconds"] == 30


def test_stored_bits_are_a_mean_over_the_run() -> None:
    some = lines(100.0)
    some[0]["stored_bits"], some[5]["stored_bits"] = 2.0, 3.0
    assert figures(some)["stored_bits"] == 2.5
    assert "stored_bits" not in figures(lines(100.0))


def test_the_table_compares_over_shared_seeds() -> None:
    ours, theirs = figures(lines(102.0, stored_bits=2.5)), figures(lines(100.0))
    worse = figures(lines(104.0))
    done = {Job(model="gru"): theirs, Job(model="gru", seed=2): worse, Job(model="revgru"): ours}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(done)][2:]
    assert rows[0] == ["nn.GRU", "200", "", "2", "102.0 ± 2.0", "", "", "", "30.00", "30"]
    assert rows[1] == ["RevGRU", "200", "3 bits", "1", "102.0", "1.020", "yes", "2.50", "30.00", "30"]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(Problem, match="--only must name a run, got 'gru-7'"):
        chosen("gru-7", reversible=True)
