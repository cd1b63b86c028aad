"""The schedule experiment: who competes at which rates, that it goes on where it stopped, and what its figures say."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from revtune.program.cli.main import main
from revtune.program.errors import Problem
from revtune.program.recipes.output_dropout import NAME, OutputDropout, OutputDropoutStudy, recipe
from revtune.program.studies.output_dropout import experiment as output_dropout_run
from revtune.program.studies.output_dropout.contestants import (
    check,
    fixed,
    noisy,
    replayed,
    scheduled,
    sinusoid,
)
from revtune.program.studies.output_dropout.experiment import Experiment, run, stored
from revtune.program.studies.output_dropout.results import markdown, plot, verdicts
from revtune.program.tasks.learner import Learner
from revtune.program.tasks.tuned_learner import TunedLearner
from tests.tiny_words import LEARNING, TUNING, write_words

CONTESTANTS = ["tuned-0.05", "tuned-0.7", "fixed-0.2", "fixed-0.5", "noisy", "sinusoid", "final", "replayed"]


@pytest.fixture
def tiny(tmp_path: Path) -> OutputDropoutStudy:
    write_words(tmp_path / "data")
    sizes = {"data": tmp_path / "data", "words": None, "width": 4, "length": 5, "learning": LEARNING}
    rates = {"starts": (0.05, 0.7), "rates": (0.2, 0.5), "period": 4}
    return dataclasses.replace(recipe(), **sizes, **rates, stn=TUNING, delta=TUNING)  # type: ignore[arg-type]


@pytest.fixture
def unplotted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revtune.tuning.tuner.history.History.plot", lambda *_: None)
    monkeypatch.setattr(output_dropout_run, "plot", lambda found: b"")


def test_rates_of_an_update() -> None:
    assert [fixed(0.3)(step) for step in (0, 9)] == [0.3, 0.3]
    assert [round(sinusoid(0.5, 0.2, 4)(step), 6) for step in range(5)] == [0.5, 0.7, 0.5, 0.3, 0.5]
    assert [sinusoid(0.5, 9.0, 4)(step) for step in (1, 3)] == [0.99, 0.0]
    draws = torch.tensor([noisy(0.5, 0.1, 1)(step) for step in range(400)], dtype=torch.float64)
    assert abs(draws.mean() - 0.5) < 0.02 and abs(draws.std() - 0.1) < 0.01
    assert noisy(0.5, 0.1, 1)(7) == draws[7] != noisy(0.5, 0.1, 2)(7)
    records: list[dict[str, Any]] = [{"step": step, "values": {NAME: step / 10}} for step in (2, 4)]
    assert [replayed(0.05, records)(step) for step in range(6)] == [0.05, 0.05, 0.2, 0.2, 0.4, 0.4]


def test_a_plain_network_takes_the_rate_of_each_update(tiny: OutputDropoutStudy) -> None:
    one, seen = scheduled(OutputDropout(tiny), lambda step: step / 10), []
    one.model.get_submodule("output_drop").register_forward_hook(lambda *_: seen.append(one.values()[NAME]))
    for _ in range(3):
        one.step()
    assert seen == [0.0, 0.1, 0.2]


def test_nothing_but_the_output_is_dropped(tiny: OutputDropoutStudy) -> None:
    task = OutputDropout(tiny)
    one, batch = scheduled(task, fixed(0.5)), task.train_batch(0)
    trained, rested = (one.model.train(training)(batch.inputs)[0] for training in (True, False))
    assert torch.equal(trained.outputs, rested.outputs)
    dropped = trained.dropped == 0
    assert torch.equal(dropped[0], dropped[-1]) and 0.2 < dropped.float().mean() < 0.8
    torch.testing.assert_close(task.train_loss(one.model, rested, batch, None).mean(), task.valid_loss(rested, batch))
    assert [*TunedLearner(OutputDropout(tiny, start=0.7), "stn").values().items()] == [(NAME, 0.7)]


def test_all_compete_and_are_told(tiny: OutputDropoutStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tiny, tmp_path / "run")
    experiment = Experiment(tiny, folder)
    assert tiny.contestants() == CONTESTANTS
    results = {name: experiment.result(name) for name in CONTESTANTS}
    assert all(results.values())
    losses = {rate: results[f"fixed-{rate}"]["valid"]["loss"] for rate in tiny.rates}  # type: ignore[index]
    assert losses[experiment.best_rate()] == min(losses.values())
    history = experiment.history("tuned-0.05")
    assert [record["step"] for record in history] == [2, 3, 4, 5, 6]
    rates = {
        name: [json.loads(line)["values"][NAME] for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in CONTESTANTS
    }
    last = history[-1]["values"][NAME]
    assert rates["final"] == [last] * 3 and last != 0.05
    assert rates["replayed"] == [0.05, history[1]["values"][NAME], history[3]["values"][NAME]]
    assert rates["fixed-0.5"] == [0.5] * 3 and len(set(rates["noisy"])) == 3
    assert rates["sinusoid"] == [experiment.schedule("sinusoid")(step) for step in (1, 3, 5)]
    told = capsys.readouterr().out
    assert "\ntuned-0.7: held-out loss " in told and "| STN from 0.7 |" in (folder / "table.md").read_text()
    found = json.loads((folder / "results.json").read_text())
    assert found["rows"][0]["schedule"][0] == [0, 0.05] and found["rows"][0]["schedule"][1][0] == 2
    assert (folder / "output_dropout.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("unplotted")
def test_it_goes_on_where_it_stopped(tiny: OutputDropoutStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = run(tiny, tmp_path / "whole"), tmp_path / "cut"
    monkeypatch.setattr("revtune.program.tasks.loop.SAVE_SECONDS", -1.0)
    original = Learner.validate
    for count in (2, 11):

        def stop(one: Learner, calls: Any = iter(range(count))) -> Any:  # noqa: B008
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return original(one)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Learner, "validate", stop)
            run(tiny, cut) if count == 2 else output_dropout_run.resume(cut)
    output_dropout_run.resume(cut)
    for name in ("results.json", "table.md"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", None)
        assert run(tiny, cut) == cut
    with pytest.raises(Problem, match="holds an experiment with other settings"):
        run(dataclasses.replace(tiny, seed=2), cut)


@pytest.mark.usefixtures("unplotted")
def test_the_program_runs_and_resumes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_words(tmp_path / "data")
    sizes = "--words 440 --width 4 --length 5 --batch 4 --valid-every 2 --steps 4 --delta.warmup 1".split()
    rates = "--method delta --starts 0.05 --rates 0.3 --period 2".split()
    out = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    assert main(["train", "output_dropout", *sizes, *rates, *out]) == 0
    assert "| Delta-STN's schedule, replayed |" in (tmp_path / "run/table.md").read_text()
    assert stored(tmp_path / "run").rates == (0.3,)
    capsys.readouterr()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert "replayed: " not in capsys.readouterr().out
    (tmp_path / "run/fixed-0.3/result.json").write_text("{")
    assert main(["train", "--resume", str(tmp_path / "run")]) == 1
    assert "fixed-0.3/result.json is damaged: expected a JSON object" in capsys.readouterr().err
    assert main(["train", "output_dropout", "--steps", "3"]) == 2
    assert "--steps must be at least " in capsys.readouterr().err
    (tmp_path / "run/config.json").write_text('{"recipe": "output_dropout", "study": {"rates": ["a"]}}')
    assert main(["train", "--resume", str(tmp_path / "run")]) == 1
    assert "is no configuration of the output_dropout experiment: rates must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"starts": (0.0, 0.5)}, "--starts must be different rates from 1e-05 to below 1, got 0.0 0.5"),
        ({"starts": ()}, "--starts must be .*, got none"),
        ({"rates": (0.5, 0.5)}, "--rates must be different rates from 0 to below 1, got 0.5 0.5"),
        ({"period": 0}, "--period must be at least 1, got 0"),
        ({"deviation": -1.0}, "--deviation must be above 0"),
    ],
)
def test_studies_that_cannot_be_are_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(Problem, match=told):
        check(dataclasses.replace(recipe(), **changes))


def test_both_sizes_can_be_and_the_full_one_is_the_papers() -> None:
    for one in (recipe(), recipe(full=True)):
        check(one)
        assert one.starts == (0.05, 0.3, 0.5, 0.7, 0.9)
    assert (recipe(full=True).width, recipe(full=True).words) == (650, None)


def test_verdicts() -> None:
    def row(name: str, valid: float, end: float, **more: Any) -> dict[str, Any]:
        figures = {"valid": {"perplexity": valid}, "test": {"perplexity": valid + 1}, "final_values": {NAME: end}}
        return {"contestant": name, "step": 4, **figures, **more}

    rows = [
        row("tuned-0.1", 80.0, 0.5, schedule=[[0, 0.1], [2, 0.5]]),
        row("tuned-0.9", 91.0, 0.6, schedule=[[0, 0.9], [2, 0.6]]),
        row("fixed-0.3", 90.0, 0.3), row("noisy", 89.0, 0.3), row("sinusoid", 88.0, 0.3), row("final", 95.0, 0.5),
        row("replayed", 81.0, 0.5),
    ]  # fmt: skip
    found = {"best_rate": 0.3, "method": "stn", "updates": 9, "rows": rows}
    assert verdicts(found) == [
        "schedules that began 0.80 apart ended 0.10 apart",
        "STN ends below the held-out perplexity 90.00 of the best fixed rate from 1 of 2 starts",
        "STN ends below the test perplexity 91.00 of the best fixed rate from 1 of 2 starts",
        "the schedule replayed comes to 81.00, below the 95.00 of its last rate fixed",
    ]
    assert "| fixed at 0.3, with a sinusoid | 88.00 | 89.00 | 4 | 0.300 |" in markdown(found)
    assert plot(found).startswith(b"\x89PNG")
    rows[-1]["valid"]["perplexity"] = 95.0
    assert verdicts(found)[-1].endswith("comes to 95.00, not below the 95.00 of its last rate fixed")
