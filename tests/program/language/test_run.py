"""Run folders: nothing that was saved is ever lost, nothing foreign is ever taken for a run."""

import dataclasses
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from revtune.program.cli.main import main
from revtune.program.data.text import byte_corpus
from revtune.program.data.text_sources import Text
from revtune.program.errors import Problem
from revtune.program.files import locked, read_bytes, write
from revtune.program.language.config import Config, Net, check, from_json
from revtune.program.language.learning import Learning
from revtune.program.language.model import build
from revtune.program.language.run import Run, create
from revtune.program.runs import checkpoint
from revtune.program.runs.checkpoint import Saved
from revtune.program.runs.folder import claimed
from revtune.program.runs.metrics import Metrics
from revtune.program.tuning import Tuning

CONFIG = Config(recipe="text", text=Text(source="file", file=Path("a b")), net=Net(max_forget_bits=None))
UNKNOWN: Any = "rnn"
CORPUS = byte_corpus(b"abc", b"d", b"e")


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """Let the system refuse to write beyond `size`, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_configuration_comes_back_from_its_json() -> None:
    assert from_json(CONFIG.json(), Path("config.json")) == CONFIG
    tuned = dataclasses.replace(CONFIG, tune="stn", stn=Tuning(ratio=3))
    assert from_json(tuned.json(), Path("config.json")) == tuned


def test_a_configuration_of_before_tuning_tunes_nothing() -> None:
    parts = json.loads(CONFIG.json())
    for name in ("tune", "tuned_from", "stn", "delta"):
        del parts[name]
    assert from_json(json.dumps(parts), Path("config.json")) == CONFIG
    assert CONFIG.tune == "off"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"recipe": 1}', CONFIG.json().replace("hidden", "size"), CONFIG.json().replace("512", '"x"'),
     *(CONFIG.json().replace(*pair) for pair in (
        ('"steps": 1600', '"steps": 1600.5'), ('"seed": 1', '"seed": true'), ('"forgetting": true', '"forgetting": 1'),
        ('"a b"', '"a\\u0000b"'), ('"small"', '"huge"'), ('"lr": 0.008', '"lr": 1' + "0" * 400), ("512", "[" * 9999))),
     "[" * 99999],
)  # fmt: skip
def test_other_json_is_no_configuration(text: str) -> None:
    with pytest.raises(Problem, match=r"config\.json is no configuration of this revtune"):
        from_json(text, Path("config.json"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", r"it must be a JSON object, got \[\]"),
        (json.dumps({**json.loads(CONFIG.json()), "text": ["a"]}), r"text must be a JSON object, got \['a'\]"),
        (json.dumps({**json.loads(CONFIG.json()), "stn": None}), "stn must be a JSON object, got None"),
    ],
)
def test_what_is_no_object_is_told(text: str, told: str) -> None:
    with pytest.raises(Problem, match=rf"config\.json is no configuration of this revtune: {told}"):
        from_json(text, Path("config.json"))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (Config(recipe="x", net=Net(hidden=7)), "--hidden must be even, to be split in halves, got 7"),
        (Config(recipe="x", net=Net(dropout=1.0)), "--dropout must be a rate from 0 to below 1, got 1.0"),
        (Config(recipe="x", net=Net(tie=True)), "--tie needs --embedding equal to --hidden, got 64 and 512"),
        (Config(recipe="x", net=Net(model="gru", hidden_dropout=0.1)), "--hidden-dropout acts inside the recurrence"),
        (Config(recipe="x", net=Net(max_forget_bits=0.0)), "--max-forget-bits must be above 0, or None"),
        (Config(recipe="x", net=Net(model=UNKNOWN)), "--model must be one of revgru, revlstm, gru, lstm, got rnn"),
        (Config(recipe="x", learning=Learning(batch=0)), "--batch must be at least 1, got 0"),
        (Config(recipe="x", learning=Learning(lr=float("nan"))), "--lr must be above 0, got nan"),
        (Config(recipe="x", learning=Learning(warmup=-1)), "--warmup must be at least 0, got -1"),
        (Config(recipe="x", net=Net(max_forget_bits=float("inf"))), "--max-forget-bits must be above 0, or None"),
        (Config(recipe="x", net=Net(hidden=2**31)), "--hidden must be below 2^31, got 2147483648"),
        (Config(recipe="x", learning=Learning(seed=2**63)), "--seed must be from -2^63 to 2^63 - 1"),
        (Config(recipe="x", learning=Learning(threads=1025)), "--threads must be at most 1024, got 1025"),
        (Config(recipe="x", learning=Learning(lr=float("inf"))), "--lr must be at most 1e+30, got inf"),
        (Config(recipe="x", learning=Learning(length_spread=65.0)), "--length-spread must be at most --length 64"),
        (Config(recipe="x", tune=UNKNOWN), "--tune must be one of delta, stn, off, got rnn"),
        (Config(recipe="x", tuned_from=0.0), "--tuned-from must be from 1e-05 to 1 - 1e-05, got 0.0"),
        (Config(recipe="x", delta=Tuning(ratio=0)), "--delta.ratio must be at least 1, got 0"),
        (Config(recipe="x", stn=Tuning(hyper_lr=-1.0)), "--stn.hyper-lr must be above 0, got -1.0"),
        (Config(recipe="x", stn=Tuning(scale=2.0)), "--stn.scale must be at most 1 where it is tuned, got 2.0"),
        (Config(recipe="x", tune="stn", stn=Tuning(warmup=1599)), "--steps must be at least 1601, the first at which"),
        (Config(recipe="x", tune="stn", net=Net(dropout=1e-6)), "--dropout must be 0, to start from --tuned-from, or"),
    ],
)
def test_values_that_no_run_can_have(config: Config, sentence: str) -> None:
    with pytest.raises(Problem) as caught:
        check(config)
    assert str(caught.value).startswith(sentence)
    assert caught.value.code == 2


def test_run_folders_are_numbered_and_never_taken_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [create(CONFIG, CORPUS, None).folder for _ in range(2)]
    assert folders == [Path("runs/text-1"), Path("runs/text-2")]
    assert Run(folders[0]).config() == CONFIG
    Run(folders[0]).check_data(CORPUS)
    with pytest.raises(Problem, match="the data are not those that runs/text-1 was trained on"):
        Run(folders[0]).check_data(byte_corpus(b"abd", b"d", b"e"))


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    create(CONFIG, CORPUS, tmp_path)
    with pytest.raises(Problem, match=r"already holds a run; revtune train --resume .* goes on with it"):
        create(CONFIG, CORPUS, tmp_path)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "weights.safetensors", "result.json"])
def test_a_folder_with_what_is_left_of_a_run_is_refused(name: str, tmp_path: Path) -> None:
    """Or a new run would go on with the other's state."""
    (tmp_path / name).touch()
    with pytest.raises(Problem, match=rf"holds {name} of a run whose config\.json is not there; put it back, or"):
        create(CONFIG, CORPUS, tmp_path)


def test_a_folder_in_which_another_process_begins_is_refused(tmp_path: Path) -> None:
    with claimed("text", tmp_path / "new") as folder:
        assert folder == tmp_path / "new"
        with pytest.raises(Problem, match=f"another process is at work in {folder}"):
            create(CONFIG, CORPUS, folder)
        assert [path.name for path in folder.iterdir()] == ["lock"]
    create(CONFIG, CORPUS, folder)


def test_an_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Problem, match="cannot make the folder .*file: File exists"):
        create(CONFIG, CORPUS, tmp_path / "file")


def test_a_folder_without_a_run_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"holds no run: config\.json is not there"):
        Run(tmp_path).config()
    (tmp_path / "vocabulary.json").write_text("{}")
    for facts in ("{}", "[]", '{"unit": "line"}', *(
        json.dumps({"unit": "word", "words": words})
        for words in ("a", ["<eos>", "<unk>", 3], ["<eos>", "<unk>", "<eos>"], ["<eos>", "a"])
    )):  # fmt: skip
        (tmp_path / "vocabulary.json").write_text(facts)
        with pytest.raises(Problem, match=r"vocabulary\.json holds no vocabulary"):
            Run(tmp_path).vocabulary()


def test_a_refused_write_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, b"old")
    with (
        files_no_longer_than(1000),
        pytest.raises(Problem, match="cannot write .*file: File too large; what was saved"),
    ):
        write(path, b"new" * 1000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_dies_halfway_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file"
    write(path, b"old")
    monkeypatch.setattr("os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        write(path, b"new")
    assert path.read_bytes() == b"old"


def test_metrics_are_cut_back_to_what_the_checkpoint_knows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path, 0)
    metrics.add({"step": 1})
    size = metrics.sync()
    metrics.add({"step": 2})
    metrics.close()
    metrics = Metrics(path, size)
    metrics.add({"step": 3})
    metrics.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 3}]
    with pytest.raises(Problem, match="has 24 bytes, fewer than the 25"):
        Metrics(path, 25)
    with pytest.raises(Problem, match="its first 24 bytes are not those that the checkpoint knows of"):
        Metrics(path, 24, metrics.digest()[::-1])
    Metrics(path, 24, metrics.digest()).close()


def test_one_process_at_a_time_writes_metrics(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", 0)
    with pytest.raises(Problem, match="another process is training in"):
        Metrics(tmp_path / "metrics.jsonl", 0)
    metrics.close()
    Metrics(tmp_path / "metrics.jsonl", 0).close()


def test_one_process_at_a_time_has_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(Problem, match=f"another process is at work in {tmp_path}"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_a_full_disk_stops_metrics_with_a_sentence(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", 0)
    with files_no_longer_than(2), pytest.raises(Problem, match=r"cannot write .*metrics\.jsonl: File too large"):
        for step in range(9):
            metrics.add({"step": step})
    metrics.close()


def test_tensors_and_facts_come_back(tmp_path: Path) -> None:
    shared = torch.randn(3, 4, dtype=torch.float64)
    saved = Saved({"a": shared[:2].t(), "b": shared[1:], "n": torch.tensor(3)}, {"step": 7})
    write(tmp_path / "file", checkpoint.pack(saved))
    again = checkpoint.read(tmp_path / "file")
    assert again.facts == saved.facts
    assert again.tensors.keys() == saved.tensors.keys()
    assert all(torch.equal(again.tensors[name], saved.tensors[name]) for name in saved.tensors)


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(Problem, match="file is not there"):
        checkpoint.read(path)
    whole = checkpoint.pack(Saved({"a": torch.zeros(9)}, {}))
    for content in (b"", b"no tensors at all", whole[:-1], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(Problem, match="file is damaged or no safetensors file"):
            checkpoint.read(path)
    for changed in (whole[:-1] + b"\1", whole.replace(b'"a":', b'"b":'), whole.replace(b'"sha256"', b'"sha999"')):
        path.write_bytes(changed)
        with pytest.raises(Problem, match="file is damaged: its contents do not match its checksum"):
            checkpoint.read(path)
    path.write_bytes(whole.replace(b'"revtune"', b'"another"'))
    with pytest.raises(Problem, match="file was not written by revtune"):
        checkpoint.read(path)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    """A pipe would be waited for, and a device read for ever."""
    os.mkfifo(tmp_path / "pipe")
    for path, sentence in (
        (tmp_path / "pipe", "it is no regular file"),
        (Path("/dev/zero"), "it is no regular file"),
        (tmp_path, "Is a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        for use in (checkpoint.read, read_bytes, lambda path: Metrics(path, 0)):
            with pytest.raises(Problem, match=f"cannot read .*: {sentence}"):
                use(path)


def test_a_model_larger_than_memory_is_refused() -> None:
    for net in (Net(hidden=2**30), Net(layers=2**30, hidden=2), Net(model="lstm", embedding=2**30)):
        with pytest.raises(Problem, match="the model cannot be built: it needs at least"):
            build(net, 256)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"weight": torch.ones(2, 2)}, "bias is only in the model"),
        ({"weight": torch.ones(2, 2), "bias": torch.ones(2), "scale": torch.ones(2)}, "scale is only in the file"),
        ({"weight": torch.ones(2, 2), "bias": torch.ones(3)}, r"bias has shape \(3,\) there and \(2,\) here"),
        ({"weight": torch.ones(2, 2), "bias": torch.ones(2).long()}, "bias has dtype torch.int64 there"),
        ({"weight": torch.ones(2, 2), "bias": torch.ones(2) / 0}, "bias holds a number that is not finite"),
    ],
)
def test_weights_of_another_model_change_nothing(tensors: dict[str, torch.Tensor], sentence: str) -> None:
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    with pytest.raises(Problem, match=f"file does not fit the model: {sentence}"):
        checkpoint.load_weights(model, Saved(tensors, {}), Path("file"))
    assert torch.equal(model.weight, before)


def test_a_tied_weight_is_saved_once() -> None:
    model = nn.ModuleDict({"encode": nn.Embedding(3, 2), "readout": nn.Linear(2, 3)})
    model["readout"].weight = model["encode"].weight
    assert set(checkpoint.weights(model)) == {"encode.weight", "readout.bias"}


def test_an_adam_optimizer_comes_back() -> None:
    model = nn.Linear(2, 2)
    optimizers = [torch.optim.Adam(model.parameters()) for _ in range(2)]
    model(torch.ones(2)).sum().backward()
    optimizers[0].step()
    tensors = checkpoint.optimizer_tensors(optimizers[0], model)
    checkpoint.load_optimizer(optimizers[1], model, Saved(tensors, {}), Path("file"), prefix="")
    one, other = (optimizer.state_dict()["state"] for optimizer in optimizers)
    assert all(torch.equal(one[i][key], other[i][key]) for i in one for key in one[i])
    assert set(one[0]) == {"step", "exp_avg", "exp_avg_sq"}
    for key, tensor, sentence in (
        ("exp_avg", torch.ones(3), "exp_avg of weight has shape"),
        ("exp_avg", torch.tensor(1.0), "exp_avg of weight has shape"),
        ("step", torch.ones(2, 2), "step of weight has shape"),
        ("step", torch.tensor(-1.0), "step of weight has an impossible number"),
        ("momentum", torch.ones(2, 2), "its optimizer has no 'momentum'"),
    ):
        bad = Saved({**tensors, f"weight/{key}": tensor}, {})
        with pytest.raises(Problem, match=sentence):
            checkpoint.load_optimizer(optimizers[1], model, bad, Path("file"), prefix="")


@pytest.mark.parametrize("lost", ["weight/exp_avg", "bias/step", "bias", ""])
def test_an_optimizer_that_lost_a_tensor_is_refused_and_changes_nothing(lost: str) -> None:
    model = nn.Linear(2, 2)
    optimizers = [torch.optim.Adam(model.parameters()) for _ in range(2)]
    model(torch.ones(2)).sum().backward()
    optimizers[0].step()
    tensors = checkpoint.optimizer_tensors(optimizers[0], model)
    left = {name: tensor for name, tensor in tensors.items() if not name.startswith(lost)}
    key = {"": "exp_avg", "bias": "exp_avg"}.get(lost) or lost.partition("/")[2]
    sentence = f"file does not fit the model: the optimizer's {key} of {lost.partition('/')[0] or 'weight'} is missing"
    with pytest.raises(Problem, match=sentence):
        checkpoint.load_optimizer(optimizers[1], model, Saved(left, {}), Path("file"), prefix="")
    assert not optimizers[1].state


def test_momentum_is_whole_or_refused() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    checkpoint.load_optimizer(optimizer, model, Saved({}, {}), Path("file"), prefix="")
    half = Saved({"weight/momentum_buffer": torch.ones(2, 2)}, {})
    with pytest.raises(Problem, match="momentum_buffer of bias is missing"):
        checkpoint.load_optimizer(optimizer, model, half, Path("file"), prefix="")
    assert not optimizer.state


LIKE = (torch.zeros(1, 4, 8), torch.zeros(1, 4, 8))


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (LIKE[:1], "it has state/0 for a state of 2 tensors"),
        ((*LIKE, LIKE[0]), "it has state/0, state/1, state/2 for a state of 2 tensors"),
        ((LIKE[0], torch.zeros(1, 4, 6)), r"state/1 has shape \(1, 4, 6\) there and \(1, 4, 8\) here"),
        ((LIKE[0].double(), LIKE[1]), "state/0 has dtype torch.float64 there and torch.float32 here"),
    ],
)
def test_states_of_another_run_are_refused(parts: tuple[torch.Tensor, ...], sentence: str) -> None:
    saved = Saved({f"state/{name}": part for name, part in checkpoint.state_tensors(parts).items()}, {})
    with pytest.raises(Problem, match=f"file does not fit the model: {sentence}"):
        checkpoint.state_of(saved, Path("file"), torch.device("cpu"), LIKE, prefix="state/")


@pytest.mark.parametrize("state", [None, LIKE[0], LIKE])
def test_a_state_comes_back(state: checkpoint.RecurrentState) -> None:
    parts = checkpoint.state_tensors(state)
    saved = Saved({f"state/{name}": part for name, part in parts.items()}, {})
    again = checkpoint.state_of(saved, Path("file"), torch.device("cpu"), tuple(parts.values()), prefix="state/")
    assert type(again) is type(state)
    assert all(map(torch.equal, checkpoint.state_tensors(again).values(), parts.values()))


@pytest.mark.parametrize("how", ["gone", "beside", "told"])
def test_a_run_moved_with_its_text_is_evaluated_and_goes_on(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, run, moved = tmp_path / "text", tmp_path / "run", tmp_path / "new" / "run"
    text.write_text("the cat sat on the mat .\na dog ran .\n" * 60)
    sizes = "--hidden 16 --embedding 8 --batch 4 --length 16 --steps 2 --valid-every 2 --tune off".split()
    assert main(["train", "text", "--file", str(text), "--out", str(run), *sizes]) == 0
    moved.parent.mkdir()
    run.rename(moved)
    place = moved.parent / ("text" if how == "beside" else "other")
    text.rename(place)
    file = ["--file", str(place)] if how == "told" else []
    capsys.readouterr()
    code = main(["evaluate", str(moved), *file])
    complaint = capsys.readouterr().err
    if how == "gone":
        assert code == 1 and f"the text of {moved} is not at {text}; give the path that it has now by" in complaint
        return
    assert code == 0 and complaint.startswith(
        f"revtune: {text} is not there; {place} is read" if how == "beside" else ""
    )
    assert main(["train", "--resume", str(moved), *file]) == 1
    assert "is finished: all 2 steps are done" in capsys.readouterr().err
    place.write_text("another text\n" * 200)
    for words in (["evaluate", str(moved)], ["train", "--resume", str(moved)]):
        assert main([*words, *file]) == 1
        assert f"the data are not those that {moved} was trained on" in capsys.readouterr().err


def test_paths_that_are_no_utf_8_are_refused_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / os.fsdecode(b"\xff")
    bad.write_text("the cat sat on the mat .\na dog ran .\n" * 60)
    for words in (
        ["train", "text", "--file", str(bad)], ["train", "text", "--file", "x", "--out", str(bad)],
        ["train", "mnist", "--data", str(bad)], ["train", "--resume", str(bad)], ["evaluate", str(bad)],
    ):  # fmt: skip
        assert main(words) == 2
        assert "/\\xff is no path that revtune can use: it must be UTF-8; rename it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [bad]
