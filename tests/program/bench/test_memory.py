"""The memory benchmark: its gauge, its contestants, its estimate and its tables."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from revtune.program.bench import memory as bench
from revtune.program.bench.contestants import Contestant, ContestantNet, Shape, chunk_of
from revtune.program.bench.measuring import peak_of
from revtune.program.bench.memory import MemoryJob, extrapolated, measured, plan, work
from revtune.program.bench.memory_results import curve, plot, rows
from revtune.program.bench.worker import last_words
from revtune.program.cli.main import main
from revtune.reversible.kernel import backend as native
from tests.mapped import mapped

SMALL = Shape(steps=50, batch=4, hidden=16, vocabulary=11)
CPU = torch.device("cpu")


@pytest.mark.parametrize("megabytes", [4, 32])
def test_the_gauge_sees_a_known_allocation_that_is_gone_again(megabytes: int) -> None:
    def step() -> None:
        mapped(megabytes * 2**20)

    assert peak_of(step, CPU) == pytest.approx(megabytes * 2**20, abs=2**20)


def test_the_gauge_sees_nothing_where_nothing_is_allocated() -> None:
    kept = torch.ones(2**20)
    assert peak_of(lambda: None, CPU) < 2**20
    assert len(kept) == 2**20


def test_contestants_of_a_cell_take_the_same_step() -> None:
    """Plain and checkpointed nets have the same loss and gradients; so have reversible ones however they are kept."""
    tokens = torch.randint(SMALL.vocabulary, (SMALL.steps + 1, SMALL.batch))
    for one, other in (
        (Contestant(cell="nn.GRU"), Contestant(cell="nn.GRU", segments=True)),
        (Contestant(cell="nn.LSTM"), Contestant(cell="nn.LSTM", segments=True)),
        (Contestant(cell="RevGRU"), Contestant(cell="RevGRU", checkpoint_every=9)),
        (Contestant(cell="RevLSTM"), Contestant(cell="RevLSTM", ordinary=True)),
    ):
        nets = [ContestantNet(contestant, SMALL) for contestant in (one, other)]
        nets[1].load_state_dict(nets[0].state_dict())
        losses = [net.step(tokens[:-1], tokens[1:]) for net in nets]
        torch.testing.assert_close(losses[0], losses[1])
        for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_a_worker_measures_in_its_own_process() -> None:
    shape = Shape(steps=400, batch=16, hidden=64, vocabulary=16)
    plain = measured(Contestant(cell="nn.GRU"), shape, 1, "cpu")
    ours = measured(Contestant(cell="RevGRU"), shape, 1, "cpu")
    assert 1.5 * ours["bytes"] < plain["bytes"] < 20 * 400 * 16 * 64 * 4
    assert ours["warm_up"] == plain["warm_up"] == 3 * chunk_of(Contestant(cell="nn.GRU"), shape)
    assert ours["bits_per_unit_step"]["stored"] > ours["bits_per_unit_step"]["ideal"] > 0
    assert plain["bits_per_unit_step"] == {}
    assert ours["gradients"] == ours["parameters"] == ours["peak"] - ours["bytes"]


@pytest.mark.parametrize("cell", ["RevGRU", "RevLSTM"])
@pytest.mark.parametrize("shape", bench.SHAPES)
def test_the_warm_up_has_the_chunks_of_the_real_step(cell: str, shape: Shape) -> None:
    contestant = Contestant(cell=cell)
    steps = chunk_of(contestant, shape)
    assert chunk_of(contestant, dataclasses.replace(shape, steps=3 * steps)) == steps < shape.steps


def test_a_worker_that_fails_says_why() -> None:
    told = measured(Contestant(cell="RevGRU"), dataclasses.replace(SMALL, vocabulary=-1), 1, "cpu")
    assert told["error"].startswith("exit 1: RuntimeError: ")


def test_the_middle_one_of_several_processes_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = [{"bytes": size} for size in (30, 10, 20, 1)] + [{"error": "no"}, {"bytes": 2}]
    monkeypatch.setattr(bench, "measured", lambda *_: told.pop(0))
    assert bench.typical(Contestant(cell="RevGRU"), SMALL, 1, "cpu") == {"bytes": 20, "range": [10, 30]}
    assert bench.typical(Contestant(cell="RevGRU"), SMALL, 1, "cpu") == {"error": "no"}


def test_jobs_survive_the_command_line() -> None:
    job = MemoryJob(contestant=Contestant(cell="RevLSTM", checkpoint_every="auto"), shape=SMALL, warm_up=9, threads=1)
    assert MemoryJob.of(job.text()) == job


def test_the_plan_has_the_agreed_shapes() -> None:
    shapes = [str(shape) for shape, _ in plan(quick=False, long=True, ordinary=False)]
    assert shapes == [
        "T=70, B=20, H=650, V=10000",
        "T=1000, B=20, H=256, V=256",
        "T=10000, B=8, H=256, V=256",
        "T=100000, B=8, H=256, V=256",
    ]
    names = {contestant.name for _, group in plan(quick=False, long=False, ordinary=False) for contestant in group}
    assert names == {
        "nn.GRU", "nn.GRU, checkpointed", "RevGRU", "nn.LSTM", "nn.LSTM, checkpointed", "RevLSTM"
    }  # fmt: skip


def test_readouts_are_ordinary_where_they_are_asked_for() -> None:
    for asked in (False, True):
        groups = [group for _, group in plan(quick=False, long=True, ordinary=asked)]
        assert {one.ordinary for group in groups for one in group if one.reversible} == {asked}
        assert not any(one.ordinary for group in groups for one in group if not one.reversible)


def result(name: str, steps: int, needed: int, **more: Any) -> dict[str, Any]:
    shape = dataclasses.asdict(dataclasses.replace(SMALL, steps=steps))
    return {"name": name, "shape": shape, "bytes": needed, "bits_per_unit_step": {}, **more}


def test_the_estimate_grows_with_the_steps() -> None:
    results = [result("nn.GRU", 10, 1000), result("nn.GRU", 50, 4000), result("RevGRU", 50, 70)]
    longer = dataclasses.replace(SMALL, steps=100)
    estimate = extrapolated(results, longer)
    assert estimate is not None
    assert (estimate["bytes"], estimate["estimate"]) == (8000, True)
    assert extrapolated(results, dataclasses.replace(longer, hidden=99)) is None


def test_rows_compare_with_the_plain_gru_and_name_failures() -> None:
    bits = {"stored": 0.5, "ideal": 0.25}
    group = [
        result("nn.GRU", 50, 64_000_000, estimate=True),
        result("RevGRU", 50, 6_400_000) | {"bits_per_unit_step": bits},
        {"name": "nn.LSTM", "error": "exit -9: no word"},
    ]
    assert [*rows(SMALL, group)] == [
        ("nn.GRU (estimate)", "64.0", "1.0x", "20000.00", "", ""),
        ("RevGRU", "6.4", "10.0x", "2000.00", "0.50", "0.25"),
        ("nn.LSTM", "exit -9: no word", "", "", "", ""),
    ]


@pytest.mark.parametrize("markdown", [False, True])
def test_the_command_prints_tables_and_writes_figures(
    markdown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(contestant: Contestant, shape: Shape, threads: int, device: bench.Device) -> dict[str, Any]:
        return result(contestant.name, shape.steps, 10**6) | {"shape": dataclasses.asdict(shape)}

    monkeypatch.setattr(bench, "SHAPES", (SMALL,))
    monkeypatch.setattr(bench, "measured", here)
    out = tmp_path / "new" / "memory.json"
    options = ["--markdown"] if markdown else []
    assert main(["bench", "memory", "--long", "--out", str(out), *options]) == 0
    told = capsys.readouterr().out
    assert ("| RevGRU | 1.0 | 1.0x | 312.50 |  |  |" in told) == markdown
    assert "RevLSTM, checkpoint_every='auto'" in told
    written = json.loads(out.read_text())
    assert [one["name"] for one in written["results"]][:2] == ["nn.GRU", "nn.GRU, checkpointed"]
    assert len(written["results"]) == 8
    assert written["threads"] == 1
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_tells_measured_from_estimated() -> None:
    results = [result("nn.GRU", 50, 6400), result("nn.GRU", 10, 640), result("nn.GRU", 90, 9900, estimate=True)]
    failed = {"name": "nn.GRU", "shape": results[0]["shape"], "error": "exit -9: no word"}
    assert curve([*results, failed], "nn.GRU") == [(10, 10.0), (50, 100.0)]
    assert curve(results, "nn.GRU", estimate=True) == [(90, 9900 / 64)]
    assert plot([*results, failed]).startswith(b"\x89PNG")


def test_one_length_is_plotted_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(contestant: Contestant, shape: Shape, threads: int, device: bench.Device) -> dict[str, Any]:
        return result(contestant.name, shape.steps, 10**6)

    monkeypatch.setattr(bench, "measured", here)
    command = ["bench", "memory", "--quick", "--out", str(tmp_path / "memory.json")]
    assert main(command) == 0
    assert not [*tmp_path.glob("*.png")]
    assert main([*command, "--plot", str(tmp_path / "plots/one.png")]) == 0
    assert (tmp_path / "plots/one.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for threads in ("0", "99999"):
        assert main(["bench", "memory", "--threads", threads]) == 2
        assert f"the processors of this machine, got {threads}\n" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["bench", "memory", "--device", "cuda"]) == 2
        assert "torch finds no CUDA device here" in capsys.readouterr().err


@pytest.mark.parametrize("measurement", ["memory", "speed"])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "/"], "cannot write /: it is no regular file"),
        (["--out", ""], "cannot write .: it is no regular file"),
        (["--out", "a.json", "--plot", ""], "cannot write .: it is no regular file"),
        (["--out", "a.png"], "figures and plots would all go to a.png; give --out and --plot different names"),
        (["--out", "a", "--plot", "./a"], "figures and plots would all go to a; give --out and --plot different names"),
    ],
)
def test_outputs_that_are_no_file_or_the_same_are_told_before_measuring(
    measurement: str,
    words: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", measurement, *words]) in (1, 2)
    assert capsys.readouterr().err == f"revtune: {sentence}\n"
    assert not [*tmp_path.iterdir()]


def test_older_figures_last_until_the_new_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(contestant: Contestant, shape: Shape, threads: int, device: bench.Device) -> dict[str, Any]:
        if contestant.name == "RevGRU":
            raise KeyboardInterrupt
        return result(contestant.name, shape.steps, 10**6)

    monkeypatch.setattr(bench, "measured", stopped)
    out = tmp_path / "memory.json"
    out.write_text("older figures")
    assert main(["bench", "memory", "--quick", "--out", str(out)]) == 130
    assert out.read_text() == "older figures"
    (left,) = tmp_path.glob("*.partial")
    assert [one["name"] for one in json.loads(left.read_text())["results"]] == ["nn.GRU", "nn.GRU, checkpointed"]


def test_a_kernel_that_cannot_be_had_is_told_before_measuring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REVTUNE_BACKEND", "native")
    monkeypatch.setattr(native, "find", lambda: native.KernelLookup(reason="g++ failed: error: oh\nmore of it"))
    for measurement in ("memory", "speed"):
        assert main(["bench", measurement]) == 1
        assert capsys.readouterr().err == "revtune: REVTUNE_BACKEND is native, but g++ failed: error: oh\n"


def test_the_last_words_are_the_error_not_the_end_of_it() -> None:
    error = (
        "Traceback (most recent call last):\n  File x\n    f()\nrevtune.errors.BackendError: g++ failed\nmore\nlast\n"
    )
    assert last_words(f"a warning\n{error}") == "revtune.errors.BackendError: g++ failed"
    assert last_words("one\nKilled\n\n") == "Killed"
    assert last_words("") == "no word"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_allocated_bytes_are_measured() -> None:
    job = MemoryJob(contestant=Contestant(cell="RevGRU"), shape=SMALL, warm_up=9, threads=1, device="cuda")
    assert work(job)["bytes"] > 0
