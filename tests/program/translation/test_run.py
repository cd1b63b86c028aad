"""Translation runs: they learn, stop and go on bit for bit, are used without their data, and say what is wrong."""

import dataclasses
import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from revtune.program.cli.main import main
from revtune.program.runs import checkpoint
from revtune.program.runs.checkpoint import unpacked
from revtune.program.tasks.live import measure
from revtune.program.tasks.tuned_learner import TunedLearner
from revtune.program.translation import run as translation_run
from revtune.program.translation.interpreter import Interpreter, Translated
from revtune.program.translation.learner import TranslationLearner
from revtune.program.translation.scores import scored
from revtune.program.translation.task import TranslationStudy, TranslationTask
from revtune.program.translation.translator import Net, rates_of
from tests.tiny_pairs import translated, write_pairs, write_raw

TUNING = ["--stn.warmup", "2", "--stn.hyper-lr", "0.05"]

SMALL = ["--embedding", "16", "--hidden", "16", "--attend", "emb+slice:4", "--dropout", "0", "--slice-dropout", "0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up pairs."""
    return write_pairs(tmp_path_factory.mktemp("data"), train=600)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt them."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    told = ["--steps", "400", "--valid-every", "40", "--batch", "20", "--lr", "0.02"]
    assert main(["train", "multi30k", "--data", str(data), "--out", str(folder), *SMALL, *told]) == 0
    return folder


def test_it_learns_to_translate(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert result["bleu"] > 80 and result["greedy_bleu"] > 80 and "tok:none" in result["signature"]
    assert result["test"]["perplexity"] < 1.5
    for side in ("encoder", "decoder"):
        found = result["bits"][side]
        assert 0 < found["forgotten"] < found["stored"] < 3 + 1
        assert found["positions"]["live"] <= found["positions"]["padded"] <= found["positions"]["unsorted"]


def test_of_two_new_runs_in_a_folder_the_later_changes_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other begins while this one reads its data."""
    folder = tmp_path / "run"

    def slow(study: TranslationStudy) -> TranslationTask:
        folder.mkdir()
        (folder / "config.json").write_text("the other's")
        return TranslationTask(study)

    monkeypatch.setattr(translation_run, "TranslationTask", slow)
    assert main(["train", "multi30k", "--data", str(data), "--out", str(folder), *SMALL]) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert (folder / "config.json").read_text() == "the other's" and not (folder / "vocabulary.json").exists()


def test_it_translates_a_file_without_its_data(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").write_text("\ufeffThe dog sees a ball.\n\nthe zorg has a tree .\n")
    place = ["--file", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--plot", str(tmp_path / "a.png")]
    assert main(["translate", str(run), *place]) == 0
    lines = (tmp_path / "out").read_text().split("\n")
    assert lines[0] == translated("the dog sees a ball .") and lines[1] == "" and len(lines) == 4
    told = capsys.readouterr().err
    assert "line 1" not in told
    assert "line 2: it is empty and stays so" in told and "line 3: unknown words: zorg" in told
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_text_that_is_tokenized_is_taken_as_it_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").write_text("the dog &apos;s ball .\n")
    for words, unknown in (([], "&amp; apos ; s"), (["--tokenized"], "&apos;s")):
        assert main(["translate", str(run), "--file", str(tmp_path / "in"), *words]) == 0
        assert f"line 1: unknown words: {unknown}\n" in capsys.readouterr().err


class Typed(io.StringIO):
    """Lines that somebody types."""

    def isatty(self) -> bool:
        return True


def test_it_translates_what_is_typed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "\ufeffThe man has a bike.\n" + "the dog " * 30 + "\n"
    for stdin in (io.StringIO, Typed):
        monkeypatch.setattr("sys.stdin", stdin(lines))
        assert main(["translate", str(run), "--beam", "1"]) == 0
        told = capsys.readouterr()
        assert told.out.split("\n")[0] == translated("the man has a bike .")
        assert "line 2: its 60 words are more than the 50 of the longest sentence learnt" in told.err
        monkeypatch.setattr("sys.stdin", stdin(lines))
        assert main(["translate", str(run), "--beam", "1", "--out", str(tmp_path / "out")]) == 0
        assert (tmp_path / "out").read_text() == told.out
        assert capsys.readouterr().out == (told.out if stdin is Typed else "")


def test_what_is_translated_stays_when_it_is_stopped(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, out, whole = ["the dog sees a ball ."] * 5, tmp_path / "out", Interpreter.__call__
    (tmp_path / "in").write_text("\n".join(lines))

    def stopped(one: Interpreter, some: Sequence[str]) -> list[Translated]:
        if out.read_text().count("\n") == 4:
            raise KeyboardInterrupt
        return whole(one, some)

    monkeypatch.setattr("revtune.program.translation.translate.AT_ONCE", 2)
    monkeypatch.setattr(Interpreter, "__call__", stopped)
    assert main(["translate", str(run), "--file", str(tmp_path / "in"), "--out", str(out)]) == 130
    assert out.read_text() == (translated(lines[0]) + "\n") * 4
    assert f"stopped; {out} has the first 4 translations" in capsys.readouterr().err


def test_what_is_read_or_learnt_is_not_written_over(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor a picture over the translations, nor over what is no file."""
    source, other = tmp_path / "in", tmp_path / "other"
    source.write_text("the dog sees a ball .\n")
    (tmp_path / "link").symlink_to(source)
    weights, kept = run / "weights.safetensors", (run / "weights.safetensors").read_bytes()
    for given, code, told in (
        (["--out", source], 2, f"--out must be a file of its own, but {source} is what --file reads"),
        (["--plot", tmp_path / "link"], 2, f"{tmp_path / 'link'} is what --file reads"),
        (["--out", weights], 2, f"{weights} is weights.safetensors of the run"),
        (["--out", other, "--plot", other], 2, f"--plot must be a file of its own, but {other} is what --out goes to"),
        (["--plot", "/dev/null"], 1, "cannot write /dev/null: it is no regular file"),
        (["--plot", "."], 1, "cannot write .: it is no regular file"),
        (["--plot", tmp_path / "no" / "a.png"], 1, f"there is no folder {tmp_path / 'no'}"),
    ):
        assert main(["translate", str(run), "--file", str(source), *map(str, given)]) == code
        assert told in capsys.readouterr().err
    (tmp_path / "hard").hardlink_to(source)
    with source.open() as typed:
        monkeypatch.setattr(sys, "stdin", typed)
        assert main(["translate", str(run), "--out", str(tmp_path / "hard")]) == 2
    assert f"but {tmp_path / 'hard'} is what is read" in capsys.readouterr().err
    assert source.read_text() == "the dog sees a ball .\n" and not other.exists() and weights.read_bytes() == kept
    assert not Path("/dev/null").is_file()


def test_piped_lines_end_as_those_of_a_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lone carriage return ends a line too; bytes that are no text are unknown words."""
    content = b"\xef\xbb\xbfthe dog\rsees a ball .\r\nthe d\xf6g .\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    assert main(["translate", str(run), "--tokenized"]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert len(lines) == told.out.count("\n") == 3
    assert "line 3: unknown words: d\ufffdg" in told.err
    (tmp_path / "text").write_bytes(content.replace(b"\xf6", b"\xef\xbf\xbd"))
    assert main(["translate", str(run), "--tokenized", "--file", str(tmp_path / "text")]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_a_closed_standard_input_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["translate", str(run)]) == 2
    assert "nothing to translate: standard input is closed; give --file" in capsys.readouterr().err


def test_of_a_line_too_long_to_be_a_sentence_the_beginning_is_translated(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file without line ends takes no time and memory without end."""
    monkeypatch.setattr("revtune.program.translation.translate.MOST_READ", 60)
    words = "the dog sees a ball and a tree .".split() * 20
    for name, size in (("long", 180), ("cut", 60)):
        (tmp_path / name).write_text(" ".join(words[:size]) + "\n")
        place = ["--file", str(tmp_path / name), "--out", str(tmp_path / f"{name}.out")]
        assert main(["translate", str(run), "--tokenized", *place]) == 0
    told = capsys.readouterr().err
    assert "line 1: its 180 words are more than the 50 of the longest sentence learnt; only its first 60" in told
    assert (tmp_path / "long.out").read_text() == (tmp_path / "cut.out").read_text()


def test_a_place_that_cannot_be_written_to_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").write_text("the dog sees a ball .\n")
    for out, told in (
        (tmp_path, "Is a directory"),
        (tmp_path / "no" / "out", "No such file"),
        (Path("/dev/full"), "No space left on device; it has 0 translations"),
    ):
        assert main(["translate", str(run), "--file", str(tmp_path / "in"), "--out", str(out)]) == 1
        assert f"cannot write {out}: {told}" in capsys.readouterr().err


def test_attention_that_nobody_could_read_is_not_drawn(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").write_text("the dog " * 101)
    words = ["--file", str(tmp_path / "in"), "--plot", str(tmp_path / "a.png"), "--beam", "1"]
    assert main(["translate", str(run), *words]) == 0
    assert "no plot: " in capsys.readouterr().err and not (tmp_path / "a.png").exists()


def test_it_is_evaluated(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVTUNE_DATA", str(data))
    assert main(["evaluate", str(run)]) == 0
    told = capsys.readouterr().out
    result = json.loads((run / "result.json").read_text())
    assert f"perplexity {result['test']['perplexity']:.2f}" in told and f"BLEU {result['bleu']:.2f}" in told


def elsewhere(run: Path, folder: Path, data: Path, **changes: Any) -> Path:
    """A copy of a run whose data are in another folder."""
    shutil.copytree(run, folder)
    config = json.loads((folder / "config.json").read_text())
    config["study"]["text"]["data"] = str(data)
    config["study"]["learning"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_other_data_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_pairs(tmp_path / "other", train=150)
    copy = elsewhere(run, tmp_path / "run", other, steps=200)
    for words in (["evaluate", str(copy)], ["train", "--resume", str(copy)]):
        assert main([*words, "--accept-edits"]) == 1
        told = f"the data, or {copy / 'vocabulary.json'}, are not those that {copy} was trained on"
        assert f"{told}: their digest differs" in capsys.readouterr().err
    (copy / "checkpoint.safetensors").unlink()
    assert main(["train", "--resume", str(copy)]) == 1
    assert "their digest differs" in capsys.readouterr().err
    assert (
        main(
            [
                "translate",
                str(copy),
                "--accept-edits",
                "--file",
                str(tmp_path / "other/multi30k/tok/val.lc.norm.tok.en"),
            ]
        )
        == 0
    )


def test_a_run_of_an_earlier_version_is_evaluated_with_a_word(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = elsewhere(run, tmp_path / "run", data)
    facts = json.loads((copy / "vocabulary.json").read_text())
    (copy / "vocabulary.json").write_text(json.dumps({side: facts[side] for side in ("source", "target")}))
    weights = copy / "weights.safetensors"
    weights.write_bytes(checkpoint.pack(dataclasses.replace(checkpoint.read(weights), seals={})))
    assert main(["evaluate", str(copy), "--split", "valid"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("valid: loss 0.") and "whether these are the same is not known" in told.err


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"source": 3, "target": 4}', "half", "form"])
def test_damaged_vocabularies_are_told(
    damage: str, run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = elsewhere(run, tmp_path / "run", data) / "vocabulary.json"
    text = path.read_text()
    other = {"half": text[:100], "form": text.replace('"form": "multi30k"', '"form": "x"')}
    path.write_text(other.get(damage, damage))
    for words in (["translate"], ["evaluate"], ["train", "--resume"]):
        assert main([*words, str(path.parent)]) == 1
        assert f"{path} holds no vocabularies: " in capsys.readouterr().err


def test_vocabularies_of_another_order_are_told(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights would translate to wrong words."""
    path = elsewhere(run, tmp_path / "run", data) / "vocabulary.json"
    facts = json.loads(path.read_text())
    facts["target"]["words"].reverse()
    path.write_text(json.dumps(facts))
    assert main(["translate", str(path.parent)]) == 1
    assert f"{path} is not the file that {path.parent / 'weights.safetensors'} was" in capsys.readouterr().err
    weights = path.parent / "weights.safetensors"  # an earlier version's
    weights.write_bytes(checkpoint.pack(dataclasses.replace(checkpoint.read(weights), seals={})))
    assert main(["translate", str(path.parent)]) == 1
    assert f"{path} has been changed: {path.parent / 'weights.safetensors'} was not" in capsys.readouterr().err


def test_sub_words_learn_from_raw_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, folder = write_raw(write_pairs(tmp_path)), tmp_path / "run"
    told = ["--data", str(data), "--unit", "subword", "--vocabulary"]
    assert main(["train", "multi30k", *told, "5", "--out", str(folder)]) == 2
    assert "--vocabulary must be at least 2" in capsys.readouterr().err and not folder.exists()
    few = ["--steps", "2", "--valid-every", "2", "--batch", "200"]
    assert main(["train", "multi30k", *told, "60", *few, *SMALL, "--out", str(folder)]) == 0
    assert "tok:13a" in json.loads((folder / "result.json").read_text())["signature"]
    assert main(["evaluate", str(folder), "--split", "valid"]) == 0
    (tmp_path / "in").write_text("The dog sees 9 balls.\n" + "the dog " * 60)
    capsys.readouterr()
    assert main(["translate", str(folder), "--file", str(tmp_path / "in")]) == 0
    told_of = capsys.readouterr().err
    assert "line 1: unknown characters: 9" in told_of and "sub-words are more than the 50" in told_of


def test_a_sample_that_stands_in_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "iwslt14-de-en-small").mkdir()
    files = write_pairs(tmp_path / "pairs") / "multi30k" / "tok"
    for ours, theirs in (("train-sample", "train"), ("valid", "val"), ("test", "test_2016_flickr")):
        for language in ("en", "de"):
            shutil.copy(files / f"{theirs}.lc.norm.tok.{language}", tmp_path / f"iwslt14-de-en-small/{ours}.{language}")
    told = ["--unit", "subword", "--vocabulary", "60", "--steps", "2", "--batch", "200", "--layers", "1"]
    words = ["train", "iwslt14", "--data", str(tmp_path), "--out", str(tmp_path / "run"), *SMALL, *told]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("iwslt14: the training text is the sample in iwslt14-de-en-small, 200 pairs where")
    assert "tok:none" in json.loads((tmp_path / "run/result.json").read_text())["signature"], "text is tokenized"


@pytest.mark.parametrize("model", ["revlstm", "gru"])
@pytest.mark.parametrize("tune", ["off", "stn"])
def test_it_goes_on_bit_for_bit(
    model: str, tune: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = ["--model", model, "--data", str(data), "--steps", "12", "--valid-every", "4", "--dropout", "0.3"]
    dropped = [*SMALL[:6], "--slice-dropout", "0.3", *told, "--tune", tune, *TUNING]
    assert main(["train", "multi30k", "--out", str(tmp_path / "a"), *dropped]) == 0
    kind: Any = TranslationLearner if tune == "off" else TunedLearner
    step, stopped = kind.update, list[bool]()

    def until(self: Any) -> float:
        if self.steps == 7 and not stopped:
            stopped.append(True)
            import signal

            signal.raise_signal(signal.SIGINT)
        return step(self)

    monkeypatch.setattr(kind, "update", until)
    assert main(["train", "multi30k", "--out", str(tmp_path / "b"), *dropped]) == 130
    assert main(["train", "--resume", str(tmp_path / "b")]) == 0
    one, other = (checkpoint.read(tmp_path / name / "weights.safetensors") for name in "ab")
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    kept = [(tmp_path / name / "schedule.json") for name in "ab"]
    assert kept[0].exists() == (tune == "stn") and (tune == "off" or kept[0].read_bytes() == kept[1].read_bytes())


@pytest.mark.parametrize(("model", "attend"), [("revgru", "emb+slice:4"), ("revlstm", "full"), ("lstm", "emb")])
def test_a_tuned_run_is_told_and_used(
    model: str, attend: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    told = ["--model", model, "--attend", attend, "--layers", "2", "--steps", "9", "--valid-every", "3", *TUNING]
    words = ["--data", str(data), "--out", str(folder), *SMALL[:4], "--slice-dropout", "0", "--tune", "stn", *told]
    assert main(["train", "multi30k", *words]) == 0
    out, names = capsys.readouterr().out, set(rates_of(Net(layers=2)))
    assert "slice_dropout 0.0" in out and "(scale 0.5)" in out and "updates/s" in out
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["values"].keys() == line["scales"].keys() == names for line in lines)
    starts = dict.fromkeys(names, 0.4) | {"slice_dropout": 0.05}
    assert all(lines[-1]["values"][name] != pytest.approx(start, rel=1e-3) for name, start in starts.items())
    schedule = json.loads((folder / "schedule.json").read_text())
    assert schedule["steps"] == [0, 4, 6, 8] and schedule["rates"]["encoder.dropout"] == ["encoder.dropout"]
    result = json.loads((folder / "result.json").read_text())
    assert result["values"] in [line["values"] for line in lines] and result["final_values"] == lines[-1]["values"]
    assert main(["evaluate", str(folder)]) == 0
    assert f"valid: {measure('perplexity', result['valid'])}" in capsys.readouterr().out
    (tmp_path / "text").write_text("the man sees a dog .\n")
    assert main(["translate", str(folder), "--file", str(tmp_path / "text")]) == 0
    assert main(["train", "--resume", str(folder)]) == 1
    assert "is finished: all 9 steps are done" in capsys.readouterr().err


def test_a_tuned_runs_final_values_are_those_of_its_last_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([2.0, 1.0, 1.5, 1.0, 1.0])
    monkeypatch.setattr(TunedLearner, "figures", lambda *_: {"loss": (loss := next(losses)), "perplexity": loss})
    words = ["--data", str(data), "--out", str(tmp_path / "run"), *SMALL[:6], "--tune", "stn", *TUNING]
    assert main(["train", "multi30k", *words, "--model", "gru", "--steps", "9", "--valid-every", "3"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["step"] == 6 and result["values"] == lines[1]["values"] != lines[2]["values"]
    assert result["final_values"] == lines[2]["values"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--attend", "slice:999"], "--attend must be emb, slice:K"),
        (["--hidden", "15", "--attend", "emb"], "--hidden must be even"),
        (["--dropout", "1"], "--dropout must be a rate from 0 to below 1, got 1"),
        (["--source", "de"], "--source and --target must differ, got de for both"),
        (["--fewest", "1000000"], "the vocabulary is empty"),
        (["--longest", "1"], "no sentence pair of the train text can be used"),
        (["--lr", "0"], "--lr must be above 0"),
        (["--fall", "1"], "--fall must be above 1, got 1"),
        *[
            (["--max-forget-bits", bits], "--max-forget-bits must be above 0, or None for no limit, got")
            for bits in ("0", "-1", "nan", "inf")
        ],
        (["--hidden", "0"], "--hidden must be at least 1, got 0"),
        (["--vocabulary", str(2**31)], "--vocabulary must be below 2^31"),
        (["--tune", "delta"], "--tune must be stn or off for a translator, got delta: what an encoder hands"),
        (["--tune", "stn", "--loss-in-blocks", "--model", "gru"], "--loss-in-blocks is for --tune off"),
        (["--tune", "stn", "--steps", "9"], "--steps must be at least 202, the first at which hyperparameters"),
        (["--tune", "stn", "--dropout", "1e-9"], "--dropout must be 0, to start from --tuned-from, or from"),
        (["--tuned-from", "1"], "--tuned-from must be from"),
        (["--stn.scale", "-1"], "--stn.scale must be above 0, got -1"),
    ],
)
def test_what_cannot_be_is_named(
    words: list[str], told: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "multi30k", "--data", str(data), "--out", str(tmp_path / "r"), *words]) in (1, 2)
    assert told in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_run_without_room_leaves_no_folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: TranslationTask) -> None:
        raise MemoryError

    monkeypatch.setattr(TranslationTask, "net", full)
    assert main(["train", "multi30k", "--data", str(data), "--out", str(tmp_path / "r"), *SMALL]) == 1
    assert not (tmp_path / "r").exists()


def test_what_scores_need_is_missed_before_all_is_learnt(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    shutil.copytree(run, tmp_path / "begun")
    new = ["multi30k", "--data", str(data), "--out", str(tmp_path / "r"), *SMALL]
    for words in (new, ["--resume", str(tmp_path / "begun")]):
        assert main(["train", *words]) == 1
        assert "pip install 'revtune[translate]'" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_run_killed_at_its_scores_is_validated_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step is none of those that are validated in any case."""
    folder, kept = tmp_path / "run", scored

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    told = ["--data", str(data), "--steps", "5", "--valid-every", "2", "--lr", "1e-9", "--batch", "200"]
    monkeypatch.setattr(translation_run, "scored", die)
    assert main(["train", "multi30k", "--out", str(folder), *SMALL, *told, "--patience", "9"]) == 130
    place = unpacked(checkpoint.read(folder / "checkpoint.safetensors"))["place"]
    assert main(["train", "--resume", str(folder)]) == 130
    monkeypatch.setattr(translation_run, "scored", kept)
    assert main(["train", "--resume", str(folder)]) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5] and all(line["train_loss"] > 1 for line in lines)
    assert unpacked(checkpoint.read(folder / "checkpoint.safetensors"))["place"] == place


@pytest.mark.parametrize("name", ["weights.safetensors", "result.json"])
def test_results_that_are_lost_are_written_anew(
    name: str, run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    copy, first = elsewhere(run, tmp_path / "run", data), json.loads((run / "result.json").read_text())
    monkeypatch.setattr(translation_run, "stored_bits", lambda *_: first["bits"])
    for damage in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9])):
        damage(copy / name)
        if name.startswith("weights"):
            assert main(["translate", str(copy)]) == 1
            assert f"revtune train --resume {copy}" in capsys.readouterr().err
        assert main(["train", "--resume", str(copy)]) == 0
        second = json.loads((copy / "result.json").read_text())
        assert {**first, "wall": 0, "cpu": 0} == {**second, "wall": 0, "cpu": 0}
        one, other = (checkpoint.read(folder / "weights.safetensors").tensors for folder in (run, copy))
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert main(["train", "--resume", str(copy)]) == 1
    assert "is finished: all 400 steps are done" in capsys.readouterr().err


def test_a_run_that_is_through_or_begun_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(run)]) == 1
    assert "is finished: all 400 steps are done" in capsys.readouterr().err
    assert main(["translate", str(tmp_path)]) == 1
    assert f"{tmp_path} holds no run: config.json is not there" in capsys.readouterr().err
    for given, told in (
        (["--beam", "0"], "--beam must be from 1 to 1000, got 0"),
        (["--beam", "1" + "0" * 22], "--beam must be from 1 to 1000"),
        (["--penalty", "99"], "--penalty must be from 0 to 10, got 99"),
        (["--penalty", "nan"], "--penalty must be from 0 to 10, got nan"),
    ):
        assert main(["translate", str(run), *given]) == 2
        assert told in capsys.readouterr().err
    assert main(["translate", str(run), "--file", str(tmp_path / "none")]) == 1
    assert "cannot read" in capsys.readouterr().err
