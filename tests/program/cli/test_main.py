"""The program as it is typed: what it prints, what it answers to mistakes, and its exit codes."""

import dataclasses
import importlib.metadata
import io
import json
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console

from revtune.errors import BackendError, NonFiniteError, SettingError
from revtune.program import recipes
from revtune.program.cli import main as cli
from revtune.program.cli.doctor import EXTRAS
from revtune.program.cli.evaluate import EVALUATIONS
from revtune.program.cli.folders import COMMANDS
from revtune.program.cli.main import main
from revtune.program.cli.train import RUNNERS
from revtune.program.data import text_sources as sources
from revtune.program.data.named_sets import SPLITS
from revtune.program.language.config import check
from revtune.program.language.live import Report, measure
from revtune.program.language.run import Run

SIZES = "--hidden 16 --embedding 8 --batch 4 --length 16 --steps 6 --valid-every 3 --save-every 2 --valid-batch 2"
SMALL = f"{SIZES} --tune off".split()
TUNED = f"{SIZES} --tune stn --stn.warmup 2".split()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_text("the cat sat on the mat .\na dog ran .\n" * 60)
    return path


@pytest.fixture(scope="module")
def by_bytes(text: Path) -> Path:
    return trained(text, text.parent / "bytes")


@pytest.fixture(scope="module")
def by_words(text: Path) -> Path:
    return trained(text, text.parent / "words", "--unit", "word")


def trained(text: Path, out: Path, *options: str) -> Path:
    assert main(["train", "text", "--file", str(text), "--out", str(out), *SMALL, *options]) == 0
    return out


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """The exit code and the one sentence that a command line is answered with."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    told = capsys.readouterr().err
    assert told.startswith("revtune: ")
    assert told.count("\n") == 1
    return code, told.removeprefix("revtune: ").rstrip()


def test_training_ends_with_a_sample_and_what_to_do_next(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "text", "--file", str(text), *SMALL]) == 0
    told = capsys.readouterr().out
    best = Run(Path("runs/text-1")).best()
    assert "step 6/6: loss" in told
    assert f"validation {measure('byte', best['valid_loss'])}, its best, at step {best['step']}; a sample:" in told
    assert "  revtune generate runs/text-1 --prompt 'The '\n  revtune evaluate runs/text-1\n" in told


def test_what_was_tuned_is_said_and_the_result_is_of_use(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    tied = "--hidden 16 --embedding 16 --tie".split()  # STN gives a tied net two weights
    assert main(["train", "text", "--file", str(text), "--out", str(out), *TUNED, *tied]) == 0
    told = capsys.readouterr().out
    assert "tuned on " in told and "input_dropout 0.005" in told and "(scale 0.5" in told
    best = Run(out).best()
    values = ", ".join(f"{name} {value:.3g}" for name, value in best["values"].items())
    assert f"tuned by stn, at that step: {values}; all steps are in {out / 'schedule.json'}\n" in told
    assert main(["evaluate", str(out), "--split", "valid"]) == 0
    assert capsys.readouterr().out.startswith(f"valid: {measure('byte', best['valid_loss'])} (")
    assert main(["generate", str(out), "--prompt", "the ", "--length", "9"]) == 0
    assert capsys.readouterr().out.startswith("the ")


def test_without_a_recipe_the_standard_library_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "stdlib", lambda: (b"def f(x):\n    return x\n" * 99,) * 3)
    assert main(["train", "--out", str(tmp_path / "run"), *SMALL]) == 0
    assert Run(tmp_path / "run").config().recipe == "stdlib"


def test_generating_repeats_by_seed_and_begins_with_the_prompt(
    by_bytes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for seed in (1, 1, 2):
        capsys.readouterr()
        assert main(["generate", str(by_bytes), "--prompt", "the ä", "--length", "40", "--seed", str(seed)]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("the ä") for text in texts)


def test_generating_greedily_needs_no_seed(by_words: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = set()
    for seed in ("1", "2"):
        capsys.readouterr()
        assert main(["generate", str(by_words), "--length", "9", "--temperature", "0", "--seed", seed]) == 0
        texts.add(capsys.readouterr().out)
    assert len(texts) == 1


def test_unknown_words_of_a_prompt_are_said(by_words: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["generate", str(by_words), "--prompt", "the zebra", "--length", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "revtune: read as <unk>, not in the vocabulary: zebra\n"
    assert captured.out.startswith("the zebra ")


def test_evaluating_prints_both_texts(by_bytes: Path, by_words: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(by_words)]) == 0
    valid, test = capsys.readouterr().out.splitlines()
    assert valid.startswith(f"valid: {measure('word', Run(by_words).best()['valid_loss'])} (")
    assert test.startswith("test: perplexity ")
    assert main(["evaluate", str(by_bytes), "--split", "test"]) == 0
    assert "bits a byte" in capsys.readouterr().out


def test_losses_are_told_as_people_quote_them() -> None:
    assert measure("byte", 0.6931472) == "1.000 bits a byte"
    assert measure("word", 4.6051702) == "perplexity 100.0"


def test_the_panel_shows_what_is_going_on() -> None:
    recipe = recipes.find("stdlib").recipe()
    report = Report(
        dataclasses.replace(recipe, learning=dataclasses.replace(recipe.learning, lr_too=True)), plain=False
    )
    report.step({"step": 3, "lr": 0.00345, "loss": 0.6931472, "tokens": 4096, "seconds": 2.0, "stored_bits": 0.871,
                 "held_out_loss": 1.25, "values": {"weight_drop": 0.1234}, "scales": {"weight_drop": 0.5}})  # fmt: skip
    report.valid({"step": 3, "valid_loss": 1.3862944})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.panel())
    told = console.export_text()
    for shown in (
        "3/1600",
        "1.000 bits a byte",
        "2,048 bytes/s",
        "MiB",
        "0.87 bits a unit",
        "2.000 bits a byte at step 3",
        "0.123 (scale 0.5)",
        "1.250 nats",
        "0.0034",
    ):
        assert shown in told


def test_mistakes_are_answered_by_a_sentence(
    text: Path, by_bytes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, code, sentence in (
        (["fly"], 2, f"there is no command 'fly'; there are {', '.join(cli.COMMANDS)}"),
        (["train", "imagenet"], 2, f"there is no recipe 'imagenet'; there are {', '.join(recipes.names())}"),
        (["train", "--file", text], 2, f"recipe stdlib reads no file; revtune train text --file {text} does"),
        (["train", "text"], 2, "recipe text learns a file of yours: give it by --file"),
        (["train", "ptb", "--size", "huge"], 2, "--size must be small or paper, got huge"),
        (["train", "--size", "paper"], 2, "recipe stdlib has one size, small, got paper"),
        (["train", "--steps", "0"], 2, "--steps must be at least 1, got 0"),
        (["train", "--tune", "delta", "--steps", "9"], 2, "--steps must be at least 202, the first at which hyper"),
        (["train", "--resume", by_bytes, "--steps", "9"], 2, "--resume takes a run's folder and no other option"),
        (["train", f"--resume={by_bytes}"], 1, f"{by_bytes} is finished: all 6 steps are done"),
        (["train", "text", "--file", text, "--out", by_bytes], 1, f"{by_bytes} already holds a run"),
        (["generate", tmp_path], 1, f"{tmp_path} holds no run: config.json is not there"),
        (["generate", by_bytes, "--seed", 2**63], 2, "--seed must be from -2^63 to 2^63 - 1, got 9223372036854775808"),
        (["generate", "x" * 300], 1, "cannot read or write: xxx"),
        (["train", "text", "--file", "/dev/zero"], 1, "cannot read /dev/zero: it is no regular file"),
        (["bench", "memory", "--out", tmp_path], 1, f"cannot write {tmp_path}: it is no regular file"),
        (["generate", by_bytes, "--temperature", "-1"], 2, "--length must be at least 1 and --temperature at least 0"),
        (["evaluate", tmp_path / "none"], 1, "holds no run"),
        (["bench", "heat"], 2, "measures memory or speed or steps or tuning or joint or imports, got heat"),
        (["doctor", "me"], 2, "revtune doctor takes no arguments, got me"),
        (
            ["compare", "--resume", "runs/a"],
            2,
            "a contest goes on by the command that began it, with --out and its folder",
        ),
        (["compare", "ptb_lstm", "--resume=runs/a"], 2, "a contest goes on by the command that began it"),
    ):
        given, told = complaint(capsys, *words)
        assert (given, sentence in told) == (code, True), told


def test_an_unknown_option_is_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--hiden", "3"])
    assert caught.value.code == 2
    assert "--hiden" in capsys.readouterr().err


def test_a_missing_extra_says_how_to_install_it() -> None:
    """In a process of its own, since this one has imported it."""
    absent = "import sys; sys.modules['tyro'] = None"
    program = f"{absent}; from revtune.program.cli.main import main; sys.exit(main(['train']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    told = "revtune: tyro is missing; pip install 'revtune[program]' installs it\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NonFiniteError("h is nan"), "h is nan"),
        (OSError(36, "File name too long", "xx"), "cannot read or write: xx: File name too long"),
        (ImportError("libfoo.so is broken", name="numpy.core"), "numpy cannot be imported: libfoo.so is broken"),
        (RecursionError("too deep"), "what was read is nested too deeply: too deep"),
        (MemoryError(), "the memory does not suffice: MemoryError"),
        (SettingError("REVTUNE_ISA must be"), "REVTUNE_ISA must be"),
        (BackendError("g++ failed: error\nline 2"), "g++ failed: error"),
        (RuntimeError("CUDA out of memory.\nMore"), "the memory does not suffice: CUDA out of memory."),
    ],
)
def test_what_nobody_expected_is_one_sentence_too(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("revtune.program.cli.doctor.doctor", raising(error))
    assert complaint(capsys, "doctor") == (1, told)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), TypeError("a bug"), ImportError("x", name="revtune.x")])
def test_programming_errors_are_not_hidden(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revtune.program.cli.doctor.doctor", raising(error))
    with pytest.raises(type(error)):
        main(["doctor"])


def raising(error: Exception) -> Callable[[list[str]], None]:
    def fail(arguments: list[str]) -> None:
        raise error

    return fail


def test_the_doctor_needs_no_extra() -> None:
    """Neither the packages nor an output: one that is closed is no reason for a traceback."""
    absent = "import sys; sys.modules.update(dict.fromkeys(['tyro', 'rich', 'safetensors']))"
    once = "from revtune.program.cli.main import main; code = main(['doctor'])"
    program = f"{absent}; {once}; sys.stdout = None; sys.exit(code or main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tyro, rich, safetensors missing" in done.stdout


def test_a_tiny_temperature_takes_the_likeliest(by_bytes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = set()
    for temperature in ("0", "1e-320"):
        capsys.readouterr()
        assert main(["generate", str(by_bytes), "--length", "9", "--temperature", temperature]) == 0
        texts.add(capsys.readouterr().out)
    assert len(texts) == 1


def test_a_run_without_weights_yet(by_bytes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "vocabulary.json"):
        (tmp_path / name).write_bytes((by_bytes / name).read_bytes())
    assert (
        complaint(capsys, "generate", tmp_path)[1]
        == f"{tmp_path} has no weights yet: its first validation is at step 3"
    )


@pytest.mark.parametrize(
    ("facts", "command", "takers"),
    [
        ({"recipe": "mnist", "method": "stn"}, "generate", ["evaluate", "report", "train --resume"]),
        ({"recipe": "mnist", "method": "stn"}, "translate", ["evaluate", "report", "train --resume"]),
        ({"recipe": "mnist", "contestants": []}, "evaluate", ["report", "compare mnist --out"]),
        ({"recipe": "mnist", "contestants": []}, "train --resume", ["report", "compare mnist --out"]),
        ({"recipe": "multi30k"}, "generate", ["translate", "evaluate", "report", "train --resume"]),
        ({"recipe": "output_dropout"}, "evaluate", ["report", "train --resume"]),
        ({"recipe": "text"}, "translate", ["generate", "evaluate", "report", "train --resume"]),
    ],
)
def test_a_folder_of_another_recipe_says_whose_it_is(
    facts: dict[str, object], command: str, takers: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(facts))
    others = ", ".join(f"revtune {taker} {tmp_path}" for taker in takers)
    told = f"{tmp_path} is of recipe {facts['recipe']}, and revtune {command} does not take it; these do: {others}"
    assert complaint(capsys, *command.split(), tmp_path) == (1, told)


def test_help_names_commands_recipes_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    told = capsys.readouterr().out
    assert "revtune train --resume RUN" in told and told.count("revtune bench tuning") == 1
    with pytest.raises(SystemExit) as caught:
        main(["train", "ptb", "--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert "wikitext2: WikiText-2" in told
    assert "--max-forget-bits" in told
    assert "(default: 0.25)" in told


def test_every_kind_of_recipe_has_who_runs_it_and_commands_that_take_its_folder() -> None:
    kinds = {recipes.find(name).kind for name in recipes.names()}
    assert kinds == set(get_args(recipes.Kind)) == set(RUNNERS) == set(COMMANDS)
    assert set(EVALUATIONS) == {kind for kind, takers in COMMANDS.items() if "evaluate" in takers}


@pytest.mark.parametrize("name", [name for name in recipes.names() if recipes.find(name).kind == "text"])
def test_recipes_give_configurations_that_can_run(name: str) -> None:
    recipe = recipes.find(name).recipe
    for config in [recipe(), *([recipe("paper")] if name in ("ptb", "wikitext2") else [])]:
        check(config)
        assert config.recipe == name


def test_the_bench_gets_its_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def memory(*, steps: int = 70) -> None:
        print(f"measured {steps} steps")

    bench = types.ModuleType("revtune.program.bench.memory")
    monkeypatch.setattr(bench, "memory", memory, raising=False)
    monkeypatch.setitem(sys.modules, "revtune.program.bench.memory", bench)
    assert main(["bench", "memory", "--steps", "9"]) == 0
    assert capsys.readouterr().out == "measured 9 steps\n"


def test_the_doctor_tells_versions_data_and_extras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ptb").mkdir()
    for split in SPLITS:
        (tmp_path / f"ptb/ptb.{split}.txt").touch()
    monkeypatch.setenv("REVTUNE_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert f"torch {importlib.metadata.version('torch').partition('+')[0]}" in told
    assert "  ptb: found\n  wikitext2: missing wikitext-2/wiki.train.tokens" in told
    optional = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert EXTRAS.keys() | {"docs", "examples", "gpu"} == optional.keys(), "and what is for developers, and for GPUs"
    assert "extra program: matplotlib missing; install with pip install 'revtune[program]'" in told
