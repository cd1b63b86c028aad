"""Runs of recipes whose hyperparameters are tuned: by every method, stopped and gone on with, refused."""

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from revtune.program.cli.main import main
from revtune.program.data.image_parts import parts
from revtune.program.errors import Problem
from revtune.program.recipes import find
from revtune.program.runs import checkpoint
from revtune.program.runs.checkpoint import packed, unpacked
from revtune.program.runs.followed import Followed
from revtune.program.studies import tuned as tuned_train
from revtune.program.tasks import live as tuned_report
from revtune.program.tasks.learner import Learner, Progress
from revtune.program.tasks.loop import TaskRun
from revtune.program.tasks.plain_learner import PlainLearner
from revtune.program.tasks.task import METHODS, Learning, Method, Study, Task, check
from revtune.program.tasks.tuned_learner import TunedLearner, learner
from revtune.program.tuning import Tuning
from revtune.tuning.conversion.plain import plain
from revtune.tuning.hypers.constants import Constants
from tests.tiny_images import write_images

LEARNING = Learning(steps=6, batch=4, valid_every=2, lr=0.05)
TUNING = Tuning(warmup=1, ratio=1, hyper_lr=0.1)


def tiny(folder: Path, recipe: str = "mnist", **changes: Any) -> Task:
    write_images(folder)
    study = find(recipe).study()
    settings = {"data": folder, "images": 40, "width": 4, "learning": LEARNING, "stn": TUNING, "delta": TUNING}
    task: Task = find(recipe).task(dataclasses.replace(study, **settings | changes))
    return task


def learnt(task: Task, method: Method, steps: int) -> Learner:
    one = learner(task, method)
    for _ in range(steps):
        one.step()
        if one.steps % 2 == 0:
            one.validate()
    return one


@pytest.mark.parametrize("recipe", ["mnist", "fashion", "cifar10"])
@pytest.mark.parametrize("method", METHODS)
def test_recipes_learn_by_every_method(recipe: str, method: Method, tmp_path: Path) -> None:
    task = tiny(tmp_path, recipe)
    one = learnt(task, method, 2)
    assert one.values().keys() == task.hypers().keys() == task.spaces().keys()
    starts = Constants(task.hypers()).values()
    moved = [name for name, value in one.values().items() if value != starts[name]]
    assert bool(moved) == (method != "plain")
    assert 0 < one.figures("test")["loss"] < 10


def test_spaces_hold_what_hyperparameters_can_be(tmp_path: Path) -> None:
    for recipe in ("mnist", "fashion", "cifar10"):
        task = tiny(tmp_path, recipe)
        for name, space in task.spaces().items():
            for value in (space.low, space.high):
                Constants(task.hypers(), {name: value})
            assert space.low <= Constants(task.hypers()).values()[name] <= space.high


@pytest.mark.parametrize("method", METHODS)
def test_a_learner_goes_on_bit_for_bit(method: Method, tmp_path: Path) -> None:
    task = tiny(tmp_path)
    whole, first = learnt(task, method, 5), learnt(task, method, 2)
    saved = packed(first.state())
    torch.manual_seed(99)
    second = learner(task, method)
    second.restore(unpacked(saved))
    for _ in range(3):
        second.step()
        if second.steps % 2 == 0:
            second.validate()
    assert second.progress == whole.progress and second.values() == whole.values()
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, second.weights()[name]), name


def test_plain_and_tuned_begin_as_the_same_network(tmp_path: Path) -> None:
    task = tiny(tmp_path)
    figures = [learner(task, method).figures("valid") for method in METHODS]
    assert figures[0] == figures[1] == figures[2]


def test_the_best_network_is_plain_and_comes_to_its_figures(tmp_path: Path) -> None:
    task = tiny(tmp_path)
    for one in (learnt(task, "stn", 4), learnt(task, "delta", 4)):
        one.take_best()
        net = plain(task.net(hypers := Constants(task.hypers())), hypers).eval()
        net.load_state_dict(one.weights())
        for split in ("valid", "test"):
            assert task.evaluate(net, split)["loss"] == pytest.approx(one.figures(split)["loss"], rel=1e-5)


def test_a_replayed_runs_result_has_the_values_of_its_best_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study: Any = tiny(tmp_path / "data").study
    (tmp_path / "tuned").mkdir()
    names, moves = ("input_drop", "drop1", "drop2"), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    schedule = {"steps": list(range(6)), "values": dict.fromkeys(names, moves), "rates": {name: [] for name in names}}
    (tmp_path / "tuned/schedule.json").write_text(json.dumps(schedule))
    losses = iter([2.0, 1.0, 1.5, 1.0, 1.0])
    monkeypatch.setattr(PlainLearner, "figures", lambda *_: {"loss": next(losses), "error": 0.5})
    followed = Followed(replay=tmp_path / "tuned")
    options: Any = tuned_train.Options(study=study, method="plain", followed=followed, out=tmp_path / "run")
    tuned_train.start("mnist", options)
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["step"] == 4 and result["values"] == dict.fromkeys(names, 0.4)
    assert result["final_values"] == dict.fromkeys(names, 0.6)
    assert "at step 4: input_drop 0.4, drop1 0.4, drop2 0.4" in capsys.readouterr().out


def test_learning_rates() -> None:
    assert Learning(lr=1.0).rate(10**6, 3) == 1.0
    assert Learning(lr=1.0, schedule="plateau").rate(5, 2) == 1 / 16
    cosine = Learning(lr=1.0, schedule="cosine", steps=100)
    assert [round(cosine.rate(step, 0), 3) for step in (0, 50, 100, 200)] == [1.0, 0.525, 0.05, 0.05]


def test_a_plateau_lowers_the_rate_and_shows(tmp_path: Path) -> None:
    task = tiny(tmp_path, learning=dataclasses.replace(LEARNING, schedule="plateau", patience=2, lr=1e-12))
    one = PlainLearner(task)
    losses = iter([1.0, 2.0, 2.0, 0.5])
    one.figures = lambda split: {"loss": next(losses)}  # type: ignore[method-assign]
    for falls, stale in ((0, 0), (0, 1), (1, 0), (1, 0)):
        one.validate()
        assert (one.progress.falls, one.progress.stale) == (falls, stale)
    assert one.progress.best == 0.5


def test_a_plateau_gives_the_lower_rate_its_time_and_does_not_hide_that_it_stopped_improving(tmp_path: Path) -> None:
    task = tiny(tmp_path, learning=dataclasses.replace(LEARNING, schedule="plateau", patience=2, lr=1e-12))
    one = PlainLearner(task)
    losses = iter([1.0, 2.0, 2.0, 2.0, 2.0, 0.5])
    one.figures = lambda split: {"loss": next(losses)}  # type: ignore[method-assign]
    stopped = []
    for _ in range(6):
        one.validate()
        stopped.append(one.stopped_improving)
    assert stopped == [False, False, False, False, True, False]


def test_earlier_checkpoints_are_gone_on_with(tmp_path: Path) -> None:
    one, other = learnt(tiny(tmp_path), "plain", 4), learner(tiny(tmp_path), "plain")
    state = one.state()
    state["place"] = {"best": 0.1, "best_step": 2, "stale": 3, "falls": 0}
    other.restore(state)
    assert other.progress == Progress(best=0.1, best_step=2, stale=3, falls=0, worse=3)


def test_the_program_trains_stops_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "data")
    size = "--images 40 --width 4 --batch 4 --valid-every 2 --delta.warmup 1 --delta.ratio 1".split()
    told = ["--data", str(tmp_path / "data"), "--steps"]
    whole, cut = (str(tmp_path / name) for name in ("whole", "cut"))
    assert main(["train", "mnist", *size, *told, "6", "--out", whole]) == 0
    out = capsys.readouterr().out
    assert "step 6/6: training loss " in out and "\ntest loss " in out and "drop2 0." in out
    assert main(["train", "mnist", *size, *told, "2", "--out", cut]) == 0
    config = json.loads((tmp_path / "cut/config.json").read_text())
    config["study"]["learning"]["steps"] = 6
    (tmp_path / "cut/config.json").write_text(json.dumps(config))
    assert main(["train", "--resume", cut]) == 1
    assert "config.json is not the file that" in capsys.readouterr().err
    assert main(["train", "--resume", cut, "--accept-edits"]) == 0
    for name in ("result.json", "history.png", "weights.safetensors"):
        assert (tmp_path / "whole" / name).exists()
    first, second = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "cut"))
    assert first == second
    one, two = (checkpoint.read(tmp_path / name / "weights.safetensors").tensors for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]
    assert main(["evaluate", cut]) == 0
    valid, test = (tuned_report.measure("error", first[split]) for split in ("valid", "test"))
    assert capsys.readouterr().out.endswith(f"valid: {valid}\ntest: {test}\n")
    assert main(["train", "--resume", cut]) == 1
    assert "all 6 steps are done" in capsys.readouterr().err


def contents(folder: Path) -> dict[str, Any]:
    """All files of a run but its checkpoint, which tells the time."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"}
    saved = checkpoint.read(folder / "weights.safetensors")
    return {**found, "weights": checkpoint.checksum(saved.tensors, json.dumps(saved.facts))}


@pytest.mark.parametrize("steps", [4, 5])
@pytest.mark.parametrize("lost", ["weights.safetensors", "result.json", "history.jsonl", "history.png"])
def test_results_that_are_lost_are_written_again(
    lost: str, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("revtune.tuning.tuner.history.History.plot", lambda one, path: path.write_bytes(b""))
    task = tiny(tmp_path / "data", learning=dataclasses.replace(LEARNING, steps=steps))
    study: Any = task.study
    folder = tuned_train.start("mnist", tuned_train.Options(study=study, out=tmp_path / "run"))
    before = contents(folder)
    (folder / lost).unlink()
    assert main(["train", "--resume", str(folder)]) == 0
    assert contents(folder) == before
    assert main(["train", "--resume", str(folder)]) == 1
    assert "is finished" in capsys.readouterr().err
    (folder / lost).write_bytes((folder / lost).read_bytes()[:-9])
    if lost.startswith("weights"):
        assert main(["evaluate", str(folder)]) == 1
        assert f"revtune train --resume {folder} writes it anew" in capsys.readouterr().err
    if not lost.startswith("history"):
        assert main(["train", "--resume", str(folder)]) == 0
        assert contents(folder) == before


@pytest.mark.parametrize(("error", "why"), [(OSError(28, "No space left"), "No space left"), (SystemExit(1), "Broken")])
def test_an_output_that_takes_no_more_stops_the_run_with_a_sentence(
    error: BaseException, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(report: Any, facts: dict[str, Any]) -> None:
        raise error

    study: Any = tiny(tmp_path / "data").study
    options = tuned_train.Options(study=study, out=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("revtune.program.tasks.live.RunReport.valid", full)
        told = rf"stopped after step 2, as the output takes no more \({why}.*\); revtune train --resume .*run goes on"
        with pytest.raises(Problem, match=told):
            tuned_train.start("mnist", options)
    tuned_train.resume(tmp_path / "run")


def test_a_run_whose_checkpoint_is_gone_is_not_begun_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it learnt would be written over."""
    study: Any = tiny(tmp_path / "data").study
    folder = tuned_train.start("mnist", tuned_train.Options(study=study, out=tmp_path / "run"))
    (folder / "checkpoint.safetensors").unlink()
    for gone, shown in ((None, "result.json is"), ("result.json", "weights.safetensors is")):
        if gone:
            (folder / gone).unlink()
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert main(["train", "--resume", str(folder)]) == 1
        assert f"checkpoint.safetensors is not there, but {shown}; put it back" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(("seconds", "refused"), [((9, 21, 30), True), ((9, 19, 21), False)])
def test_measurements_show_that_there_was_a_checkpoint(
    seconds: tuple[int, ...], refused: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is written after the first of them that comes after 20 seconds; a run killed before begins anew."""
    study: Any = tiny(tmp_path / "data").study
    folder = tuned_train.start("mnist", tuned_train.Options(study=study, out=tmp_path / "run"))
    for name in ("checkpoint.safetensors", "result.json", "weights.safetensors"):
        (folder / name).unlink()
    lines = [json.dumps({"step": 2 * number, "wall": wall}) for number, wall in enumerate(seconds, 1)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 8, "wa']))
    assert main(["train", "--resume", str(folder)]) == int(refused)
    if refused:
        assert "is not there, but metrics.jsonl knows of step 6" in capsys.readouterr().err


def test_a_run_killed_before_its_results_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study: Any = tiny(tmp_path / "data").study
    folders = [tmp_path / name for name in ("whole", "killed")]
    tuned_train.start("mnist", tuned_train.Options(study=study, out=folders[0]))

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TaskRun, "result", die)
        tuned_train.start("mnist", tuned_train.Options(study=study, out=folders[1]))
    assert not (folders[1] / "result.json").exists()
    tuned_train.resume(folders[1])
    first, second = ((folder / "result.json").read_bytes() for folder in folders)
    assert first == second


def test_a_run_asked_to_stop_in_its_last_step_is_validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study: Any = tiny(tmp_path / "data", learning=dataclasses.replace(LEARNING, steps=5)).study
    update = TunedLearner.update

    def interrupted(one: TunedLearner) -> float:
        if one.steps == 4:
            signal.raise_signal(signal.SIGINT)
        return update(one)

    with monkeypatch.context() as patch, pytest.raises(Problem, match="stopped after step 5"):
        patch.setattr(TunedLearner, "update", interrupted)
        tuned_train.start("mnist", tuned_train.Options(study=study, out=tmp_path / "run"))
    tuned_train.resume(tmp_path / "run")
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 5] and (tmp_path / "run/result.json").exists()


@pytest.mark.parametrize("method", ["stn", "delta"])
def test_a_run_too_short_to_tune_is_refused(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "data")
    size = "--images 40 --width 4 --batch 4 --valid-every 2 --delta.warmup 3 --stn.warmup 3".split()
    words = ["train", "mnist", *size, "--data", str(tmp_path / "data"), "--steps", "4", "--out", str(tmp_path / "run")]
    assert main([*words, "--method", method]) == 2
    told = f"--steps must be at least 5, the first at which hyperparameters are tuned by --{method}.warmup 3 and "
    assert f"{told}--{method}.ratio 2, got 4" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*words, "--method", "plain"]) == 0


def test_other_data_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path)
    task = tiny(tmp_path)
    study: Any = task.study
    options = tuned_train.Options(study=dataclasses.replace(study, learning=LEARNING), out=tmp_path / "run")
    tuned_train.start("mnist", options)
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["study"]["learning"]["steps"] = 8
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    write_images(tmp_path, seed=1)
    with pytest.raises(Problem, match="data are not those"):
        tuned_train.resume(tmp_path / "run", accept_edits=True)
    with pytest.raises(Problem, match="data are not those"):
        tuned_train.opened(tmp_path / "run", accept_edits=True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"learning": Learning(steps=0)}, "--steps must be at least 1, got 0"),
        ({"learning": Learning(lr=0.0)}, "--lr must be above 0, got 0"),
        ({"stn": Tuning(hyper_lr=float("nan"))}, "--stn.hyper-lr must be above 0, got nan"),
        ({"delta": Tuning(ratio=0)}, "--delta.ratio must be at least 1, got 0"),
        ({"delta": Tuning(scale=1.5)}, "--delta.scale must be at most 1 where it is tuned, got 1.5"),
        ({"stn": Tuning(warmup=2**31)}, "--stn.warmup must be below 2"),
        ({"threads": 2**40}, "--threads must be below 2"),
    ],
)
def test_settings_that_cannot_be_are_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(Problem, match=told):
        check(Study(**changes))


def test_sizes_that_do_not_fit_are_told(tmp_path: Path) -> None:
    write_images(tmp_path)
    with pytest.raises(Problem, match="--images must be from 5 to 60 for mnist, got 61"):
        parts("mnist", tmp_path, 61)
    with pytest.raises(Problem, match="--batch must be at most 8, the valid images, got 9"):
        tiny(tmp_path, learning=Learning(batch=9))


def test_cifar_without_its_test_images_holds_training_images_out(tmp_path: Path, monkeypatch: Any) -> None:
    write_images(tmp_path)
    monkeypatch.setattr("revtune.program.data.image_parts.TEST", 20)
    found = parts("cifar10", tmp_path, None)
    assert [len(part[0]) for part in found[:3]] == [32, 8, 20]
    assert found.test_is == "the last 20 training images, as only 10 test images are there"


def test_states_keep_their_kinds() -> None:
    state = {0: (torch.arange(3), [None, 1.5]), "a": {"b": True, "c": float("inf")}}
    found = unpacked(packed(state))
    assert torch.equal(found[0][0], torch.arange(3)) and found[0][1] == [None, 1.5] and found["a"] == state["a"]
    assert isinstance(found[0], tuple) and list(found) == [0, "a"]


def test_tuned_learners_take_their_methods_settings(tmp_path: Path) -> None:
    told = dataclasses.replace(TUNING, response_lr=0.5, optimizer="rmsprop", ratio=3, tune_scales=False, scale=1.5)
    task = tiny(tmp_path, stn=told)
    one, other = TunedLearner(task, "stn"), TunedLearner(task, "delta")
    one.set_rate()
    assert [group["lr"] for group in one.optimizer.param_groups] == [0.05, 0.025]
    assert isinstance(one.tuner.hyper_optimizer, torch.optim.RMSprop) and (one.tuner.ratio, other.tuner.ratio) == (3, 1)
    assert [any(spec.tune_scale for spec in its.hypers.specs.values()) for its in (one, other)] == [False, True]
    assert [set(its.hypers.scales().values()) for its in (one, other)] == [{1.5}, {0.5}]
