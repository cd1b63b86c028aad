"""Pages of every kind of folder, what they say of what is missing, and what is said of what is none."""

import dataclasses
import html
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from revtune.program.cli.main import main
from revtune.program.cli.train import runner_and_options
from revtune.program.language import trainer
from revtune.program.recipes import find
from revtune.program.recipes.output_dropout import NAME
from revtune.program.report import beside, translation
from revtune.program.runs.followed import Followed, replayable
from revtune.program.studies import tuned
from revtune.program.studies.compare.compare import run as run_contest
from revtune.program.studies.tuned import Options as TunedOptions
from revtune.program.studies.tuned import start
from revtune.program.tasks.task import with_absolute_paths
from revtune.program.tuning import Tuning
from tests.chunking import set_chunk_steps
from tests.tiny_contests import language_contest, tiny_options
from tests.tiny_pairs import write_pairs
from tests.tiny_runs import Silent, config, write_sums
from tests.tiny_words import tiny, write_words

KEPT = Path(__file__).parents[3] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model's, whose dropout is tuned."""
    folder = tmp_path_factory.mktemp("text")
    write_sums(folder / "sums")
    one = config(folder / "sums", length=24, steps=21, save_every=5)
    with pytest.MonkeyPatch.context() as patch:
        set_chunk_steps(patch, 4)  # a pass of one chunk would store nothing
        trainer.start(one, folder / "run", Silent())
    return folder / "run"


def written(out: Path) -> str:
    """A page without Plotly's script, which is most of it."""
    text = out.read_text(encoding="utf-8")
    first = text.index("<script>/*") if "<script>/*" in text else text.index("<script>(")
    return text[:first]


def page_of(tmp_path: Path, *folders: Path) -> str:
    out = tmp_path / "page.html"
    assert main(["report", *map(str, folders), "--out", str(out)]) == 0
    return written(out)


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["report", *map(str, words)])
    told = capsys.readouterr().err
    assert told.startswith("revtune: ") and told.count("\n") == 1
    return code, told.removeprefix("revtune: ").rstrip()


def test_a_language_model_has_its_page_in_its_folder(text_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(text_run)]) == 0
    out = text_run / "report.html"
    assert f"the report is in {out}" in capsys.readouterr().out
    text = written(out)
    for part in (
        "held-out", "Bits stored by layer", "RevGRU layer 0", "Learning rate", "Memory of the process", "native",
        "600 bytes at temperature 0.7", "revtune generate", "Missing: nothing was measured",
    ):  # fmt: skip
        assert part in text, part
    command = f"revtune train text --file {text_run.parent / 'sums'} --embedding 8 --hidden 8 --steps 21"
    assert command in text
    assert main(["report", str(text_run)]) == 0  # over itself


def test_bits_and_memory_are_recorded_where_bits_are_metered(text_run: Path) -> None:
    lines = [json.loads(line) for line in (text_run / "metrics.jsonl").read_text().splitlines()]
    metered = [line for line in lines if "layer_bits" in line]
    assert [line["step"] for line in metered] == [1, 11, 21]
    assert all(line["layer_bits"] == {"RevGRU layer 0": line["stored_bits"]} for line in metered)
    assert all(line["resident_bytes"] > 2**20 for line in metered)
    environment = json.loads((text_run / "environment.json").read_text())
    assert {"revtune", "torch", "python", "processor"} <= environment.keys()


def start_words(text: str) -> list[str]:
    """The words after the program's name of the command that a page gives first to repeat a run."""
    found = re.search("revtune (train [^<]*)", text)
    assert found
    return shlex.split(html.unescape(found[1].splitlines()[0]))


def test_a_language_model_that_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("revtune.program.language.sample.shown", lambda *_: "")
    write_sums(tmp_path / "sums")
    tuning = Tuning(warmup=1, ratio=2, hyper_lr=0.1)
    one = dataclasses.replace(config(tmp_path / "sums", "gru"), tune="stn", stn=tuning)
    trainer.start(one, tmp_path / "tuned", Silent())
    words = "train text --model gru --embedding 8 --hidden 8 --batch 4 --length 8 --steps 8 --valid-every 4 --tune off"
    file = ["--file", str(tmp_path / "sums"), "--valid-batch", "2"]
    followed = ["--replay", str(tmp_path / "tuned"), "--out", str(tmp_path / "run")]
    assert main([*words.split(), *file, *followed]) == 0
    assert f"the hyperparameters follow the schedule of {tmp_path / 'tuned'}" in capsys.readouterr().out
    text = page_of(tmp_path, tmp_path / "run")
    assert f"the run follows the schedule of {tmp_path / 'tuned'}, which replayed.json keeps" in text
    assert "stayed as the configuration" not in text and "scales are missing" not in text
    assert ">input_dropout<" in text
    again = [*start_words(text), "--out", str(tmp_path / "again")]
    assert main(again) == 0
    for name in ("replayed.json", "config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_tuned_recipe_that_takes_last_values(tmp_path: Path) -> None:
    write_words(tmp_path / "data")
    study = tiny(tmp_path / "data")
    followed = {name: [0.1 * number, 0.2] for number, name in enumerate(find("ptb_lstm").task(study).hypers())}
    schedule = {"steps": [0, 3], "values": followed, "rates": {name: [] for name in followed}}
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned/schedule.json").write_text(json.dumps(schedule))
    follows = Followed(values_of=tmp_path / "tuned")
    options: Any = TunedOptions(study=study, method="plain", followed=follows, out=tmp_path / "run")
    start("ptb_lstm", options)
    text = page_of(tmp_path, tmp_path / "run")
    last = f"the last values of {tmp_path / 'tuned'}, which it had from step 3 on"
    assert f"the run follows {last}, which replayed.json keeps" in text and "at another run&#x27;s values" in text
    assert "starting values" not in text and "scales are missing" not in text
    runner, given = runner_and_options("ptb_lstm", start_words(text)[2:])
    assert runner is tuned and given.study == with_absolute_paths(study) and given.method == "plain"
    assert given.followed.replay == tmp_path / "run"


@pytest.mark.parametrize("method", ["delta", "plain"])
def test_a_tuned_recipe(method: Any, tmp_path: Path) -> None:
    write_words(tmp_path / "data")
    study = tiny(tmp_path / "data", model="revlstm", width=16, length=40)
    options: Any = TunedOptions(study=study, method=method, out=tmp_path / "run")
    start("ptb_lstm", options)
    text = page_of(tmp_path, tmp_path / "run")
    assert "test" in text and "Held-out perplexity" in text and "updates a second" in text
    if method == "delta":
        assert '"title":{"text":"scale of perturbations"}' in text and ">rnn.dropout<" in text
    else:
        assert "a plain run stays at its starting values" in text
    assert "Nothing is written or translated by recipe ptb_lstm" in text


def test_a_translator(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", train=60)
    sizes = "--embedding 16 --hidden 16 --attend emb+slice:4 --steps 40 --valid-every 20 --batch 20 --lr 0.02"
    assert main(["train", "multi30k", "--data", str(data), "--out", str(tmp_path / "run"), *sizes.split()]) == 0
    text = page_of(tmp_path, tmp_path / "run")
    assert "BLEU" in text and "Bits a unit, state and word" in text and "translator, en to de" in text
    assert '"type":"heatmap"' in text and "revtune translate" in text
    shutil.rmtree(data)
    assert "No translations: " in page_of(tmp_path, tmp_path / "run")


def test_a_tuned_translator(tmp_path: Path) -> None:
    """As far as it has come."""
    study = dataclasses.replace(find("multi30k").recipe(), tune="stn")
    (tmp_path / "config.json").write_text(
        json.dumps({"recipe": "multi30k", "study": dataclasses.asdict(study)}, default=str)
    )
    line = {"loss": 3.0, "train_loss": 3.0, "perplexity": 20.0, "wall": 1.0}
    lines = [{**line, "step": step, "values": {"drop": 0.1 * step}, "scales": {"drop": 0.5}} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    story = translation.story(tmp_path, "run")
    assert not any(section == "hyperparameters" for section, _ in story.notes)
    values, scales = (line for axes, line in story.lines if axes.title == "drop")
    assert values.points == [(1, 0.1), (2, 0.2)] and scales.points == [(1, 0.5), (2, 0.5)]
    assert story.kind.endswith(", tuned by STN") and not any(axes.title == "Learning rate" for axes, _ in story.lines)
    assert runner_and_options("multi30k", shlex.split(story.commands[0])[3:])[1].study == study


@pytest.mark.slow
def test_a_contest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_contest("mnist", tiny_options(tmp_path, monkeypatch))
    text = page_of(tmp_path, folder)
    assert "Delta-STN, seed 1" in text and "whole trials" in text and "scale of perturbations" in text
    (folder / "results.json").unlink()
    text = page_of(tmp_path, folder)
    assert "The contest has no results yet" in text and "Delta-STN, seed 1" in text


def test_a_contest_of_language_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_contest("ptb", language_contest(tmp_path, "gru", ("plain", "stn"), monkeypatch))
    text = page_of(tmp_path, folder)
    assert "contest on ptb" in text and "STN, seed 1" in text and ">encode.dropout<" in text
    assert "revtune compare ptb --data " in text and "--words 200 --model gru" in text


@pytest.mark.parametrize(
    "kept, parts",
    {
        "compare/fashion": ["TPE, seed 3", "Delta-STN reached", "contestants&#x27; own folders are not there"],
        "compare/ptb_lstm": ["perplexity", "revtune compare ptb_lstm"],
        "output_dropout": ["STN from 0.05", "schedules that began", "Losses over time are missing"],
        "repeat": ["NF-RevLSTM", "Per cent of tokens repeated", "Nothing was tuned"],
        "joint/revlstm-seed-1": [
            "Memory is missing: the run is of an earlier version", "not recorded: the run is of an earlier version",
            "Perturbation scales are missing", "words.dropout",
        ],
    }.items(),
)  # fmt: skip
def test_what_is_kept_of_earlier_runs(kept: str, parts: list[str], tmp_path: Path) -> None:
    text = page_of(tmp_path, KEPT / kept)
    for part in parts:
        assert part in text, part


def test_runs_of_different_kinds_side_by_side(text_run: Path, tmp_path: Path) -> None:
    folders = [KEPT / "joint/lstm-seed-1", KEPT / "joint/revlstm-seed-1", KEPT / "compare/fashion", text_run]
    text = page_of(tmp_path, *folders)
    assert "revlstm-seed-1: held-out" in text and "fashion: STN, seed 1" in text and "run: training" in text
    assert text.index("<td>study.model</td>") < text.index("<details>")


def test_several_go_here_and_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        shutil.copytree(KEPT / "joint/lstm-seed-1", tmp_path / name / "run")
    assert main(["report", "a/run", "b/run"]) == 0
    assert "a/run: held-out" in written(tmp_path / "report.html")


def test_measurements_that_were_cut_off_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    shutil.copytree(KEPT / "joint/lstm-seed-1", tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    text = page_of(tmp_path, tmp_path / "run")
    assert "ends in the middle of a line" in text and '"name":"held-out"' in text
    path.unlink()
    assert "metrics.jsonl is not there" in page_of(tmp_path, tmp_path / "run")


def test_an_edited_runs_sample_is_refused_and_the_rest_shown(text_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(text_run, folder)
    (folder / "report.html").unlink(missing_ok=True)
    settings = (folder / "config.json").read_text().replace('"clip": 1.0', '"clip": 2.0')
    (folder / "config.json").write_text(settings)
    text = page_of(tmp_path, folder)
    assert "No sample: " in text and "was edited" in text and '"name":"held-out"' in text
    assert main(["report", str(folder), "--accept-edits"]) == 0
    assert "600 bytes at temperature" in written(folder / "report.html")


def test_what_is_no_run_is_refused_in_a_sentence(
    text_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a file")
    assert complaint(capsys) == (2, "revtune report takes the folder of a run, or several, got none")
    for place in ("empty", "file", "nowhere"):
        assert complaint(capsys, place) == (1, f"{place} holds no run: config.json is not there")
    assert complaint(capsys, text_run, "--out", "no/page.html") == (
        1,
        "cannot write no/page.html: there is no folder no",
    )
    assert complaint(capsys, text_run, "--out", "file") == (
        1, "file is there already and is no report of revtune's; give another --out"
    )  # fmt: skip
    config = text_run / "config.json"
    assert complaint(capsys, text_run, "--out", config) == (
        2,
        f"--out must be a file of its own, but {config} is config.json of a run",
    )
    assert complaint(capsys, text_run, "--out", "empty") == (1, "cannot write empty: it is no regular file")


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("config.json", "{", "is no configuration"), ("config.json", "[]", "is no configuration"),
        ("config.json", '{"recipe": "gone"}', "is of recipe 'gone', which is none of this revtune"),
        ("result.json", "{}", "is damaged: expected step (int)"), ("result.json", "nonsense", "is damaged"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(
    name: str, content: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(KEPT / "joint/lstm-seed-1", tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    code, said = complaint(capsys, tmp_path / "run")
    assert code == 1 and told in said and name in said


@pytest.mark.parametrize("kept", ["compare/fashion", "output_dropout"])
def test_damaged_results_are_named(kept: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(KEPT / kept, tmp_path / "run")
    path = tmp_path / "run" / "results.json"
    results = json.loads(path.read_text())
    results["rows"] = [{"contestant": "plain"}]
    path.write_text(json.dumps(results))
    code, said = complaint(capsys, tmp_path / "run")
    assert code == 1 and said.startswith(f"{path} is damaged: ")


def test_an_experiment_that_goes_on_shows_what_it_has(tmp_path: Path) -> None:
    shutil.copytree(KEPT / "output_dropout", tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    place = tmp_path / "run" / "tuned-0.05"
    place.mkdir()
    line = {"step": 29, "wall": 1.0, "loss": 5.0, "train_loss": 5.5, "values": {NAME: 0.1}}
    (place / "metrics.jsonl").write_text("".join(json.dumps({**line, "step": step}) + "\n" for step in (29, 58)))
    text = page_of(tmp_path, tmp_path / "run")
    assert "The experiment has no results yet" in text and "tuned-0.05, held-out" in text


@pytest.mark.slow
def test_a_step_is_measured_beside_torchs_layer(text_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(text_run), "--measure", "--out", str(out)]) == 0
    text = written(out)
    assert "A training step at T = 24, B = 4" in text and "<td>nn.GRU</td>" in text and "RevGRU takes" in text


def test_what_is_measured_beside_torchs_layer_drops_as_the_run_began(tmp_path: Path) -> None:
    write_sums(tmp_path / "sums")
    plain = config(tmp_path / "sums", "revgru")
    tuned = dataclasses.replace(plain, tune="stn", tuned_from=0.2, stn=Tuning(warmup=1, ratio=2, hyper_lr=0.1))
    trainer.start(tuned, tmp_path / "tuned", Silent())
    schedule = replayable(tmp_path / "tuned")
    follows = dataclasses.replace(plain, replays=True)
    trainer.start(follows, tmp_path / "run", Silent(), schedule)
    began = {"input_dropout": 0.2, "hidden_dropout": 0.2, "output_dropout": 0.2, "weight_drop": 0.2}
    for folder in ("tuned", "run"):
        net: Any = beside.text_loss(tmp_path / folder, "revgru")[0]
        assert {name: getattr(net.rnn.options, name) for name in began} == pytest.approx(began)
        other: Any = beside.text_loss(tmp_path / folder, "gru")[0]
        assert (other.rnn.input_drop.p, other.rnn.output_drop.p) == pytest.approx((0.2, 0.2))
