"""The speed benchmark: what competes, how turns are taken, and what tables, goals and plots make of them."""

import contextlib
import dataclasses
import json
import random
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from revtune.program.bench import speed, speed_plot
from revtune.program.bench.contestants import CELLS, Contestant, Shape, backend_seen
from revtune.program.bench.display import Terminal
from revtune.program.bench.goals import Goal
from revtune.program.bench.matmul_floor import CELL_PRODUCTS, MatmulFloor, Product
from revtune.program.bench.measuring import MOST_REPEATS, turns, warmed_up
from revtune.program.bench.speed import SpeedJob, measured, timed
from revtune.program.bench.speed_cases import BARE_LAYERS, GOALS, PAIRS, SWEEP, WHOLE_STEP, SpeedCase, along, plan
from revtune.program.bench.speed_lines import fit, lines
from revtune.program.bench.speed_steps import BareLayer, steps_of
from revtune.program.bench.speed_table import Comparison, backends, row, show
from revtune.program.bench.worker import Record
from revtune.program.cli.main import main
from revtune.program.errors import Problem

SMALL = Shape(steps=11, batch=3, inputs=6, hidden=8, vocabulary=13)


class Clock:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now, self.told = 0.0, list[str]()

    def __call__(self) -> float:
        return self.now

    def run(self, name: str, *seconds: float) -> Callable[[], None]:
        """A contestant that takes these seconds, run by run, over and over."""
        taken = 0

        def step() -> None:
            nonlocal taken
            self.now += seconds[taken % len(seconds)]
            taken += 1
            self.told.append(name)

        return step


def record(case: SpeedCase, seconds: dict[str, list[float]], threads: int = 1) -> Record:
    ran = {ours: "reference" for ours, _ in PAIRS}
    return {**dataclasses.asdict(case), "threads": threads, "repeats": 1, "seconds": seconds, "backend": ran}


def plausible(job: SpeedJob) -> Iterator[Record]:
    """Records whose times are a straight line of the steps, without measuring anything."""
    for case in job.cases:
        names = [name for pair in PAIRS for name in pair]
        names += [f"{theirs}, checkpointed" for _, theirs in PAIRS] if case.checkpointed else []
        seconds = {name: [(2 + case.shape.steps) * (1 + i / 8) for i in range(job.rounds)] for name in names}
        yield record(case, seconds, job.threads)


def test_contestants_take_turns_forth_and_back() -> None:
    clock = Clock()
    runs = {"a": clock.run("a", 1), "b": clock.run("b", 2), "c": clock.run("c", 4)}
    assert turns(runs, 3, 2, clock) == {"a": [1, 1, 1], "b": [2, 2, 2], "c": [4, 4, 4]}
    assert "".join(clock.told) == "aabbcc" + "ccbbaa" + "aabbcc"


def test_what_slows_down_evenly_is_met_alike() -> None:
    """Each run takes a second more than the one before; forth and back, sums over two rounds are the same."""
    clock = Clock()
    slower = (float(second) for second in range(1, 99))

    def step() -> None:
        clock.now += next(slower)

    found = turns({"a": step, "b": step}, 2, 1, clock)
    assert found == {"a": [1, 4], "b": [2, 3]}


def test_a_turn_repeats_what_is_fast() -> None:
    for took, repeats in ((3.0, 1), (0.25, 4), (1e-9, MOST_REPEATS)):
        clock = Clock()
        assert warmed_up({"a": clock.run("a", 99, took), "b": clock.run("b", 7)}, 1.0, clock) == repeats
        assert "".join(clock.told) == "aba"


def test_ratios_are_those_of_one_round() -> None:
    """The median of ratios is not the ratio of medians."""
    case = SpeedCase(kind="layer", shape=BARE_LAYERS[0])
    seconds = {"nn.GRU": [1.0, 2.0, 10.0], "RevGRU": [0.5, 3.0, 6.0], "products of RevGRU": [0.25, 1.0, 3.0]}
    seconds |= {"nn.GRU, checkpointed": [2.0, 2.0, 13.0], "products of nn.GRU": [0.5, 0.5, 5.0]}
    pair = Comparison(record(case, seconds), "RevGRU", "nn.GRU")
    assert pair.ratios() == [0.5, 1.5, 0.6]
    assert row(pair) == ("70, 20, 650, 650", "GRU", "0.60", "0.50-1.50", "0.75/0.60 both", "1.30", "0.50", "2.00")
    assert Comparison(record(case, seconds), "RevLSTM", "nn.LSTM").ratios() == []


@pytest.mark.parametrize(
    "goal, ratio, verdict",
    [
        (Goal(0.75, 0.6), 0.751, "missed"),
        (Goal(0.75, 0.6), 0.75, "met"),
        (Goal(0.75, 0.6), 0.6, "both"),
        (Goal(1.0), 0.2, "met"),
        (Goal(1.0), 1.004, "missed"),
    ],
)
def test_a_goal_is_missed_met_or_more_than_met(goal: Goal, ratio: float, verdict: str) -> None:
    assert goal.verdict(ratio) == verdict


def test_the_goals_are_those_agreed_and_all_are_measured() -> None:
    bare = {ours: [str(GOALS["layer", shape, ours]) for shape in BARE_LAYERS] for ours, _ in PAIRS}
    assert bare == {
        "RevGRU": ["0.75/0.60", "0.50", "0.65/0.60", "0.65/0.60"],
        "RevLSTM": ["1.30/1.10", "1.00", "1.30/1.10", "1.30/1.10"],
    }
    assert {str(goal) for (kind, *_), goal in GOALS.items() if kind != "layer"} == {"1.00"}
    assert ("step", WHOLE_STEP, "RevGRU") in GOALS and len(GOALS) == 8 + 8 + 2 + 1
    planned = {(case.kind, case.shape) for case in plan()}
    assert {(kind, shape) for kind, shape, _ in GOALS} == planned
    assert {(case.kind, case.shape) for case in plan(quick=True)} < planned


def test_the_sweep_covers_the_agreed_sizes() -> None:
    cases = [*plan(sweep=True)]
    for axis, least, most in (("steps", 20, 10_000), ("hidden", 128, 1100), ("batch", 1, 64)):
        for kind in ("layer", "step"):
            sizes = {getattr(case.shape, axis) for case in cases if case.kind == kind and case.shape.layers == 1}
            assert (min(sizes), max(sizes)) == (least, most)
    assert {case.shape.layers for case in cases} == {1, 2}
    assert Shape(steps=10_000, batch=8, hidden=256) in {case.shape for case in cases}
    assert len({(case.kind, case.shape) for case in cases}) == len(cases)
    assert all(any(along(axis, case.shape) for axis in SWEEP) for case in cases)


def test_a_missed_goal_is_marked_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {"nn.GRU": [1.0], "RevGRU": [0.7], "nn.LSTM": [1.0], "RevLSTM": [1.31]}
    show(Terminal(), "layer", 2, [record(SpeedCase(kind="layer", shape=BARE_LAYERS[2]), seconds, 2)])
    told = capsys.readouterr().out
    assert "bare layer, forward and backward, 2 threads; T, B, input, H" in " ".join(told.split())
    assert "0.65/0.60 missed" in told and "1.30/1.10 missed" in told
    assert "ckpt" not in told


def test_a_bare_layer_under_checkpoints_has_the_same_gradients() -> None:
    for cell in ("nn.GRU", "nn.LSTM"):
        dy, found = torch.randn(SMALL.steps, SMALL.batch, SMALL.hidden), []
        plain = Contestant(cell=cell).layer(SMALL.features, SMALL).state_dict()
        for segments in (False, True):
            x = torch.linspace(-1, 1, SMALL.steps * SMALL.batch * SMALL.features)
            x = x.view(SMALL.steps, SMALL.batch, SMALL.features).requires_grad_()
            bare = BareLayer(Contestant(cell=cell, segments=segments), SMALL, x, dy)
            bare.rnn.load_state_dict(plain)
            bare.backward()
            found.append([x.grad, *(weight.grad for weight in bare.rnn.parameters())])
            bare.train()
            assert x.grad is None and all(weight.grad is None for weight in bare.rnn.parameters())
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)


@contextlib.contextmanager
def plain_products() -> Iterator[None]:
    """nn.LSTM as products that can be counted, not as one operation of oneDNN."""
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(True)


def work_of(products: list[Product]) -> int:
    return sum(2 * left.shape[0] * left.shape[1] * right.shape[1] for left, right, _ in products)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELL_PRODUCTS)
def test_the_floor_has_the_products_of_its_layer(cell: str, layers: int) -> None:
    """As many operations as the layer itself spends on products going forward, and twice as many going back."""
    shape = dataclasses.replace(SMALL, layers=layers)
    floor = MatmulFloor(cell, shape)
    options = {"backend": "reference"} if cell.startswith("Rev") else {}
    layer = CELLS[cell](shape.features, shape.hidden, layers, **options)
    with torch.no_grad(), plain_products(), FlopCounterMode(display=False) as counted:
        layer(torch.zeros(shape.steps, shape.batch, shape.features))
    assert work_of(floor.forward) == counted.get_total_flops()
    assert work_of(floor.backward) == 2 * work_of(floor.forward)
    for _, _, out in floor.forward + floor.backward:
        out.fill_(torch.nan)
    floor.train()
    assert all(out.isfinite().all() for _, _, out in floor.forward + floor.backward)


def test_those_compared_stand_side_by_side() -> None:
    case = SpeedCase(kind="layer", shape=SMALL, checkpointed=True, products=True)
    gru = ["nn.GRU", "RevGRU", "nn.GRU, checkpointed", "products of nn.GRU", "products of RevGRU"]
    assert [*steps_of(case, "auto")] == gru + [name.replace("GRU", "LSTM") for name in gru]
    whole = dataclasses.replace(case, kind="step", products=False)
    assert [*steps_of(whole, "auto")] == [name.replace("GRU", cell) for cell in ("GRU", "LSTM") for name in gru[:3]]


@pytest.mark.parametrize("kind", ["layer", "inference", "step"])
def test_all_contestants_run(kind: Any) -> None:
    shape = dataclasses.replace(SMALL, steps=5, layers=2)
    case = SpeedCase(kind=kind, shape=shape, checkpointed=kind != "inference", products=kind != "step")
    found = timed(case, SpeedJob(cases=(), threads=1, rounds=2, backend="auto", turn=1e-9))
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in found["seconds"].values())
    assert SpeedCase.of(found) == case


def test_the_backend_is_seen_from_the_operators_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend_seen(Contestant(cell="RevLSTM", backend="reference")) == "reference"
    library = torch.library.Library("revtune", "FRAGMENT")
    library.define("test_only(Tensor x) -> Tensor")
    library.impl("test_only", lambda x: x + 1, "CPU")
    kernel = types.SimpleNamespace(layer=lambda inputs, shape: torch.ops.revtune.test_only)
    assert backend_seen(kernel) == "native"  # type: ignore[arg-type]
    assert backends([record(SpeedCase(kind="layer", shape=SMALL), {})]).startswith(
        "RevGRU ran on the reference backend, Rev"
    )


def test_a_straight_line_is_found() -> None:
    assert fit([(20, 7.0), (1000, 301.0 - 4.0), (10_000, 3001.0 - 4.0)]) != pytest.approx((1.0, 0.3))
    assert fit([(steps, 1 + 0.3 * steps) for steps in (20, 1000, 10_000)]) == pytest.approx((1.0, 0.3))
    shapes = [dataclasses.replace(SWEEP["steps"][0], steps=steps) for steps in (20, 200, 2000)]
    cases = [SpeedCase(kind="layer", shape=shape) for shape in shapes]
    bent = [record(case, {"nn.GRU": [3.0, 1.0 * case.shape.steps, 1e9]}) for case in cases]
    (line,) = lines(bent)
    assert (line.name, line.points) == ("nn.GRU", [(20, 20.0), (200, 200.0), (2000, 2000.0)])
    assert (line.start, line.slope, line.deviation) == pytest.approx((0, 1, 0), abs=1e-6)
    bent[1]["seconds"]["nn.GRU"] = [250.0]
    (line,) = lines(bent)
    assert 0.1 < line.deviation < 0.25


def test_the_command_measures_in_a_process_of_each_thread_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        SpeedCase(kind="layer", shape=SMALL, products=True),
        SpeedCase(kind="step", shape=SMALL, checkpointed=True),
    ]
    monkeypatch.setattr(speed, "plan", lambda quick, sweep: cases)
    monkeypatch.setattr(speed, "TURN", 0.0001)
    out = tmp_path / "new" / "speed.json"
    assert main(["bench", "speed", "--threads", "1", "--markdown", "--backend", "reference", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "| bare layer, forward and backward, 1 thread; T, B, input, H | cell | ratio | range | mm | own mm |" in told
    assert "| whole training step, 1 thread; T, B, H, V | cell | ratio | range | ckpt |" in told
    assert "RevGRU ran on the reference backend, RevLSTM ran on the reference backend." in told
    written = json.loads(out.read_text())
    assert [SpeedCase.of(one) for one in written["records"]] == cases
    assert all(len(times) == 7 for one in written["records"] for times in one["seconds"].values())
    assert written["rounds"] == 7 and {one["threads"] for one in written["records"]} == {1}
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("option", ["--quick", "--sweep", ""])
def test_each_plan_gives_tables_and_plots(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "measured", plausible)
    monkeypatch.setattr("revtune.program.bench.measuring.processors", lambda: 2)
    out, plot = tmp_path / "speed.json", tmp_path / "plots/drawn.png"
    words = [option] if option else []
    command = ["bench", "speed", "--threads", "1", "2", "--rounds", "8", "--out", str(out), "--plot", str(plot)]
    assert main(command + words) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert ("layer, 2 threads: RevLSTM │ 1.00 │ 0%" in told) == (option == "--sweep")
    assert ("Goals: " in told) == (option != "--sweep")
    assert "forward and backward, 2 threads; T, B, input, H" in told
    drawn = ["drawn-ratios.png", "drawn.png"] if option == "--sweep" else ["drawn.png"]
    assert sorted(path.name for path in plot.parent.iterdir()) == drawn
    assert json.loads(out.read_text())["rounds"] == 8


def test_a_sweep_that_was_cut_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    every, asked = len(list(plan(sweep=True))), list[tuple[int, int]]()

    def cut_off(job: SpeedJob) -> Iterator[Record]:
        asked.append((job.threads, len(job.cases)))
        for number, found in enumerate(plausible(job)):
            if len(asked) == 2 and number == 3:
                raise Problem("the lights went out")
            yield found

    monkeypatch.setattr(speed, "measured", cut_off)
    monkeypatch.setattr("revtune.program.bench.measuring.processors", lambda: 2)
    out = tmp_path / "sweep.json"
    command = ["bench", "speed", "--sweep", "--markdown", "--threads", "1", "2", "--out", str(out)]
    assert main(command) == 1
    assert len(json.loads(out.read_text())["records"]) == every + 3
    assert main(command) == 0
    assert asked == [(1, every), (2, every), (2, every - 3)]
    assert len(json.loads(out.read_text())["records"]) == 2 * every
    assert main(command) == 0 and len(asked) == 3
    assert len(json.loads(out.read_text())["records"]) == 2 * every
    capsys.readouterr()
    assert main(["bench", "speed", "--threads", "1", "--out", str(plain := tmp_path / "plain.json")]) == 0
    assert main([*command[:-1], str(plain)]) == 1
    assert f"{plain} holds no sweep of this machine, version and options" in capsys.readouterr().err
    assert main([*command, "--rounds", "8"]) == 1
    assert f"{out} holds no sweep of this machine, version and options" in capsys.readouterr().err


def test_goals_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal times meet a goal of 1 or more and no other; 1.1 is more than met."""
    monkeypatch.setattr(speed, "measured", plausible)
    assert main(["bench", "speed", "--threads", "1", "--out", str(tmp_path / "speed.json")]) == 0
    assert "Goals: 15 of 19 met; 3 of 6 where more is within reach attain it." in capsys.readouterr().out


def test_plots_bear_times_far_apart() -> None:
    random.seed(1)
    found = [
        one
        for threads in (1, 2, 3)
        for one in plausible(SpeedJob(cases=(*plan(),), threads=threads, rounds=7, backend="auto", turn=1e-9))
    ]
    for one in found:
        one["seconds"] = {name: [random.uniform(1e-4, 9) for _ in times] for name, times in one["seconds"].items()}
    assert speed_plot.goals(found).startswith(b"\x89PNG")


def test_a_worker_that_fails_says_why() -> None:
    case = SpeedCase(kind="layer", shape=dataclasses.replace(SMALL, batch=-1))
    with pytest.raises(Problem, match=r"the layer at 11, -1, 6, 8 could not be measured: exit 1: RuntimeError: "):
        next(measured(SpeedJob(cases=(case,), threads=1, rounds=1, backend="auto", turn=1e-9)))


def test_jobs_survive_the_command_line() -> None:
    job = SpeedJob(cases=tuple(plan(sweep=True)), threads=2, rounds=9, backend="reference", turn=0.01)
    assert SpeedJob.of(job.text()) == job


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--quick", "--sweep"], "--quick and --sweep exclude each other"),
        (["--threads", "0"], "--threads must be from 1 to "),
        (["--threads", "1", "9999"], "the processors of this machine, got 1 9999"),
        (["--rounds", "6"], "--rounds must be at least 7 for a median to mean something, got 6"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "speed", *words]) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1


def test_a_backend_that_cannot_be_had_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def layer(*_: object) -> None:
        raise RuntimeError("there is no compiler")

    monkeypatch.setattr(Contestant, "layer", layer)
    assert main(["bench", "speed", "--backend", "native"]) == 1
    assert capsys.readouterr().err == "revtune: --backend native: there is no compiler\n"


def test_an_output_that_cannot_be_written_is_told_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--out", str(tmp_path)], ["--out", str(tmp_path / "a.json"), "--plot", str(tmp_path)]):
        assert main(["bench", "speed", *words]) == 1
        assert f"cannot write {tmp_path}: it is no regular file" in capsys.readouterr().err
