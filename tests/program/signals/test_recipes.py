"""Recipes of signals: each learns, goes on bit for bit, and refuses what it cannot do; their batches and figures."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from revtune.program import recipes
from revtune.program.cli.main import main
from revtune.program.recipes import find
from revtune.program.runs.checkpoint import packed, unpacked
from revtune.program.signals.beats import answers, f1, middles
from revtune.program.signals.digits import frames
from revtune.program.signals.losses import PADDED
from revtune.program.signals.net import SignalNet
from revtune.program.signals.rows import LikeLengths, ending_together
from revtune.program.tasks.plain_learner import PlainLearner
from tests.tiny_signals import write_digit, write_heart, write_signals

for needed in ("wfdb", "soundfile", "scipy"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

NAMES = [name for name in recipes.names() if find(name).kind == "signal"]
SMALL: dict[str, dict[str, Any]] = {
    "smnist": {"images": 40, "tested": 10}, "psmnist": {"images": 40, "tested": 10}, "copy": {"length": 5, "tested": 8},
    "adding": {"length": 12, "tested": 8}, "music": {}, "digits": {"frame": 64}, "ecg": {"length": 200},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    write_signals(folder := tmp_path_factory.mktemp("signals"))
    return folder


def task_of(name: str, data: Path, **changes: Any) -> Any:
    study = find(name).study()
    learning = dataclasses.replace(study.learning, steps=4, batch=4, valid_every=2)
    settings = {"data": data, "hidden": 6, "learning": learning, **SMALL[name], **changes}
    return find(name).task(dataclasses.replace(study, **settings))


def command(name: str, data: Path, out: Path, *more: str) -> list[str]:
    settings = [word for key, value in SMALL[name].items() for word in (f"--{key}", str(value))]
    learning = ["--steps", "4", "--batch", "4", "--valid-every", "2", "--hidden", "6"]
    return ["train", name, "--data", str(data), "--out", str(out), *settings, *learning, *more]


def test_there_is_a_recipe_for_each_row_of_the_documentation() -> None:
    assert sorted(NAMES) == sorted(SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_learns_evaluates_and_is_reported(name: str, data: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(command(name, data, tmp_path / "run")) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    quoted = find(name).task.measure
    assert 0 < result["test"]["loss"] < 100 and quoted in result["valid"]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert f"test: loss {result['test']['loss']:.4f}" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert f"recipe {name} has no hyperparameters" in page and f"revtune train {name} " in page


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [{}, {"model": "lstm", "truncate": 3}, {"model": "gru", "checkpoints": True}])
def test_a_learner_goes_on_bit_for_bit(name: str, how: dict[str, Any], data: Path) -> None:
    def learnt(steps: int) -> PlainLearner:
        learner = PlainLearner(task_of(name, data, **how))
        for _ in range(steps):
            learner.step()
        return learner

    whole, first = learnt(4), learnt(2)
    saved = packed(first.state())
    torch.manual_seed(99)
    second = PlainLearner(task_of(name, data, **how))
    second.restore(unpacked(saved))
    for _ in range(2):
        second.step()
    pairs = zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not torch.equal(next(iter(first.model.parameters())), next(iter(whole.model.parameters())))


@pytest.mark.parametrize("name", ["copy", "music", "ecg"])
def test_segments_add_up_to_the_whole_loss(name: str, data: Path) -> None:
    whole, cut = (PlainLearner(task_of(name, data, truncate=truncate)) for truncate in (None, 3))
    batch = whole.task.train_batch(0)
    assert len(list(cut.parts(batch))) > 1
    assert cut.loss(batch).item() == pytest.approx(whole.loss(batch).item(), rel=1e-5)


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main([str(word) for word in words])
    return code, capsys.readouterr().err.strip().removeprefix("revtune: ")


@pytest.mark.parametrize(
    "name, more, told",
    [
        ("smnist", ["--method", "delta"],
         "--method must be plain, as recipe smnist tunes no hyperparameters, got delta"),
        ("smnist", ["--size", "paper"], "--size must be small or full, got paper"),
        ("copy", ["--hidden", "5"], "--hidden must be even to split it in halves, got 5"),
        ("copy", ["--truncate", "0"], "--truncate must be at least 1, got 0"),
        ("copy", ["--truncate", "5", "--checkpoints"],
         "--checkpoints keep one gradient over all steps, --truncate cuts it; leave one out"),
        ("copy", ["--length", "1"], "--length must be at least 2, got 1"),
        ("copy", ["--growing", "0"], "--growing must be at least 1, got 0"),
        ("copy", ["--doubled", "0"], "--doubled must be at least 1, got 0"),
        ("copy", ["--doubled", "9"], "--doubled 9 is for lengths that grow; give --growing too"),
        ("digits", ["--speaker", "eve"], "--speaker must be one of ann, bob, got eve"),
        ("digits", ["--batch", "21"], "--batch must be at most 20, the training recordings, got 21"),
        ("ecg", ["--length", "1201"], "--length must be at most 1200, the samples to learn from, got 1201"),
        ("ecg", ["--length", "None"], "--batch must be 1 where --length is None, got 4"),
        ("ecg", ["--record", "101"], "ecg/101.hea was not found: ecg/101.hea is not in {data}"),
        ("music", ["--pieces", "muse"], "polyphonic-music/MuseData.mat was not found: polyphonic-music/MuseData.mat is "
         "not in {data}"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_is_a_sentence(
    name: str, more: list[str], told: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert complaint(capsys, *command(name, data, out), *more)[1] == told.format(data=data)
    assert not out.exists()


def test_lost_data_lose_no_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("ecg", data, out := tmp_path / "run")) == 0
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    code, told = complaint(capsys, "evaluate", out, "--data", tmp_path)
    assert (code, told) == (1, f"ecg/100.hea was not found: ecg/100.hea is not in {tmp_path}")
    assert kept == {path.name: path.read_bytes() for path in out.iterdir()}


def test_compare_says_that_nothing_is_tuned(capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(capsys, "compare", "ecg")[1].startswith("recipe ecg tunes no hyperparameters; ")


def test_a_held_out_speaker_is_never_heard(data: Path) -> None:
    task = task_of("digits", data, speaker="bob")
    speakers = {name: {each.speaker for each in part} for name, part in task.parts_of.items()}
    assert speakers == {"train": {"ann"}, "valid": {"ann"}, "test": {"bob"}}
    assert len(task.parts_of["test"]) == 30
    takes = {name: {each.take for each in part} for name, part in task_of("digits", data).parts_of.items()}
    assert takes == {"train": {10}, "valid": {5}, "test": {7}}


def test_the_official_test_of_spoken_digits_is_read_by_nobody(tmp_path: Path) -> None:
    for take in range(18):
        write_digit(tmp_path, 3, "ann" if take % 2 else "bob", take)
    for speaker in (None, "ann"):
        parts = task_of("digits", tmp_path, speaker=speaker).parts_of
        assert not {each.take for part in parts.values() for each in part} & set(range(5))


def test_frames_end_with_the_last_sample() -> None:
    found = frames(torch.tensor([300, -300, 300], dtype=torch.int16), 2)
    assert found.tolist() == [[0.0, pytest.approx(1.1547, rel=1e-3)], [pytest.approx(-1.1547, rel=1e-3)] + [
        pytest.approx(1.1547, rel=1e-3)
    ]]  # fmt: skip
    assert ending_together([torch.ones(1), torch.ones(3)]).tolist() == [[0, 1], [0, 1], [1, 1]]


def test_permuted_pixels_are_the_same_pixels(data: Path) -> None:
    plain, permuted = (task_of(name, data).train_batch(0) for name in ("smnist", "psmnist"))
    assert plain[0].shape == (784, 4, 1) and torch.equal(plain[1], permuted[1])
    assert not torch.equal(plain[0], permuted[0])
    assert torch.equal(plain[0].sort(0).values, permuted[0].sort(0).values)


def test_copy_and_adding_can_be_done() -> None:
    x, y = task_of("copy", Path()).train_batch(3)
    assert x.shape == y.shape == (25, 4)
    assert torch.equal(x[:10].long(), y[-10:]) and (y[:-10] == -100).all()
    assert (x[10:] == torch.where(torch.arange(15) == 4, 9, 8).unsqueeze(1)).all()
    x, y = task_of("adding", Path()).train_batch(3)
    assert torch.equal(x[..., 1].sum(0), torch.full((4,), 2.0)) and torch.equal((x[..., 0] * x[..., 1]).sum(0), y)
    assert torch.equal(x[:6, :, 1].sum(0), torch.ones(4))


def test_memory_tasks_grow_to_their_length() -> None:
    task = task_of("adding", Path(), length=1_000, growing=6, doubled=2)
    lengths = [task.length(update) for update in (0, 5, 6, 7, 8, 10, 12, 10**6)]
    assert lengths == [100, 100, 200, 200, 400, 800, 1_000, 1_000]
    assert [len(task.train_batch(update)[0]) for update in (5, 6, 12)] == [100, 200, 1_000]
    assert len(task.held_out("valid")[0]) == 1_000
    assert task_of("adding", Path(), length=1_000).length(0) == 1_000


def test_music_asks_for_the_next_step(data: Path) -> None:
    task = task_of("music", data)
    x, y = task.train_batch(0)
    lengths = (y[..., 0] != PADDED).sum(0)
    assert task.counted(y) == lengths.sum() and len(set(lengths.tolist())) > 1
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(x[1:length, row], y[: length - 1, row])
        assert (y[length:, row] == PADDED).all() and not x[length:, row].any()


def test_a_pass_has_every_example_once() -> None:
    rows = LikeLengths([5 * number % 32 for number in range(32)], 4, 1)
    drawn = [rows.rows(number) for number in range(16)]
    assert sorted(sum(drawn[:8], [])) == sorted(sum(drawn[8:], [])) == list(range(32)) and drawn[:8] != drawn[8:]
    assert max(max(batch) - min(batch) for batch in [[5 * row % 32 for row in batch] for batch in drawn]) == 3


def test_beats_are_told_a_little_later() -> None:
    told = answers(torch.tensor([100, 950]), 1_000, 100)
    assert told.nonzero().flatten().tolist() == [*range(107, 114), *range(957, 964)]
    assert middles(told == 1).tolist() == [110, 960]
    assert middles(torch.tensor([True, False, True])).tolist() == [0, 2]
    assert middles(torch.zeros(3, dtype=torch.bool)).tolist() == []


@pytest.mark.parametrize(
    "found, score",
    [([10, 20], 1.0), ([13, 22], 1.0), ([10], 2 / 3), ([], 0.0), ([10, 11, 20], 0.8), ([14, 24], 0.0), ([7, 8], 0.5)],
)
def test_f1_matches_each_beat_once(found: list[int], score: float) -> None:
    assert f1(torch.tensor(found), torch.tensor([10, 20]), 3) == pytest.approx(score)


@pytest.mark.parametrize("every", [300, 216, 217, 218, 219])
def test_a_net_that_knows_has_all_beats(every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of beats shortly before the cut at sample 1,200, whose answers lie behind it, or on both sides."""
    write_heart(tmp_path, every=every)
    task = task_of("ecg", tmp_path)
    for split in ("train", "valid", "test"):
        truth = task.signal(split)[1]
        monkeypatch.setattr(SignalNet, "scores", lambda _, x, truth=truth: torch.stack([1 - truth, truth], -1).float())
        assert task.evaluate(task.net(None), split)["f1"] == 1.0
