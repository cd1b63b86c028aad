"""The benchmark of single steps: who competes at which sizes, and what the tables make of it."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import revtune as rt
from revtune.program.bench import steps
from revtune.program.bench.steps import CASES, GOAL, PAIRS, StepCase, StepJob, contestant, pairs, rows_of, work
from revtune.program.cli.main import main

SMALL = (StepCase(kind="step", batch=2, hidden=4), StepCase(kind="loop", batch=2, hidden=4))


def test_the_sizes_and_the_goal_are_those_agreed() -> None:
    single = [(case.hidden, case.batch) for case in CASES if case.kind == "step"]
    assert single == [(hidden, batch) for hidden in (128, 256, 650) for batch in (1, 4, 16)]
    assert str(GOAL) == "1.20"
    assert [theirs for _, theirs in PAIRS["step"]] == [nn.GRU, nn.GRUCell, nn.LSTM, nn.LSTMCell]


@pytest.mark.parametrize("kind", [kind for pair in PAIRS["step"] for kind in pair])
def test_a_single_step_has_no_gradient(kind: type[nn.Module]) -> None:
    result = contestant(kind, SMALL[0])()
    tensors = [result] if isinstance(result, torch.Tensor) else list(result)  # type: ignore[call-overload]
    first = tensors[0]
    assert first.shape == ((2, 4) if "Cell" in kind.__name__ else (1, 2, 4))
    assert not first.requires_grad


@pytest.mark.parametrize("kind", [kind for pair in PAIRS["loop"] for kind in pair])
def test_a_loop_takes_gradients(kind: type[nn.RNNCellBase], monkeypatch: pytest.MonkeyPatch) -> None:
    reset: list[nn.Module] = []
    original = kind.reset_parameters

    def noted(module: nn.RNNCellBase) -> None:
        reset.append(module)
        original(module)

    monkeypatch.setattr(kind, "reset_parameters", noted)
    contestant(kind, SMALL[1])()
    assert len(reset) == 1 and all(weight.grad is not None for weight in reset[0].parameters())


def test_pairs_take_turns_and_are_compared_round_by_round() -> None:
    records = list(work(StepJob(cases=SMALL, threads=1, rounds=7)))
    assert [record["kind"] for record in records] == ["step", "loop"]
    for record in records:
        assert all(len(taken) == 7 for taken in record["seconds"].values())
        assert [ours for ours, *_ in pairs(record)] == [ours.__name__ for ours, _ in PAIRS[record["kind"]]]
    record = {"kind": "step", "batch": 1, "hidden": 8, "seconds": {}}
    for number, (ours, theirs) in enumerate(PAIRS["step"]):
        slow = 1.3 if number else 1.0
        record["seconds"] |= {
            ours.__name__: [slow * 2e-5, slow * 4e-5, 1.0],
            f"nn.{theirs.__name__}": [2e-5, 4e-5, 2.0],
        }
    rows = list(rows_of(record))
    assert rows[0] == ("RevGRU", "1, 8", "40", "1.00", "0.50-1.00", "1.20 met")
    assert rows[3] == ("RevLSTMCell", "1, 8", "52", "1.30", "0.50-1.30", "1.20 missed")


def test_the_command_prints_tables_and_keeps_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(steps, "CASES", SMALL)
    out = tmp_path / "steps.json"
    assert main(["bench", "steps", "--rounds", "7", "--markdown", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "single step, no gradients, 1 thread" in told and "20 steps of a loop" in told
    assert "| RevGRUCell | 2, 4 |" in told.replace("  ", " ") and "of 4 met" in told
    kept = json.loads(out.read_text())
    assert kept["rounds"] == 7 and len(kept["records"]) == 2


def test_too_few_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "steps", "--rounds", "3"]) == 2
    assert "--rounds must be at least 7" in capsys.readouterr().err


def test_our_contestants_take_the_kernels_step(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []
    original = torch.ops.revtune.step

    def noted(*arguments: object) -> object:
        results = original(*arguments)
        taken.append(bool(results))
        return results

    if rt.RevGRU(4, 4).engine_for(torch.zeros(1)):
        monkeypatch.setattr(torch.ops.revtune, "step", noted)
        for ours, _ in PAIRS["step"]:
            contestant(ours, SMALL[0])()
        assert taken == [True] * 4
