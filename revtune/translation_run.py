"""A translation run from its first step to its BLEU, or the rest of one, and a finished one to use."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from revtune import checkpoint
from revtune.bleu import bleu
from revtune.config import read_typed
from revtune.pairs import Lexicon, lexicon
from revtune.problem import Problem
from revtune.run import next_folder, refuse_taken, write
from revtune.translating import Decoding, Interpreter
from revtune.translation import Study, Translation, TranslationLearner
from revtune.translation_bits import stored as stored_bits
from revtune.translator import Over, Translator, build
from revtune.tuned_report import TunedReport, measure
from revtune.tuned_run import Course
from revtune.tuned_train import check_numbers


@dataclass(frozen=True, kw_only=True)
class Options:
    """Learn to translate."""

    study: Annotated[Study, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run; by default the next free runs/<recipe>-<n>."""
    full: bool = False
    """The settings of the papers, hours instead of one."""


def start(name: str, options: Options) -> Path:
    """A new run of a recipe, from its first step to its last; its folder."""
    refuse_taken(options.out)
    text = options.study.text
    study = dataclasses.replace(options.study, text=dataclasses.replace(text, data=text.data and text.data.absolute()))
    check(study)
    task = Translation(study)
    folder = options.out or next_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    for split, there in task.pairs.splits.items():
        if there.empty or there.long:
            print(f"{split}: left out {there.empty} pairs with an empty side and {there.long} beyond --longest")
    known = {"source": task.pairs.source.facts(), "target": task.pairs.target.facts()}
    write(folder / "vocabulary.json", json.dumps(known).encode())
    facts = {"recipe": name, "study": dataclasses.asdict(study)}
    write(folder / "config.json", json.dumps(facts, indent=2, default=str).encode() + b"\n")
    go_on(task, folder)
    return folder


def check(study: Study) -> None:
    """Raise `Problem` for the first setting that no run can have."""
    from revtune.config import _every

    Over.of(study.net.attend, study.net.hidden)
    _every(study.net, "embedding hidden layers", lambda value: value >= 1, "at least 1")
    _every(study.net, "dropout slice_dropout", lambda value: 0 <= value < 1, "a rate from 0 to below 1")
    _every(study.text, "vocabulary fewest longest", lambda value: value >= 1, "at least 1")
    if study.net.model in ("revgru", "revlstm"):
        _every(study.net, "hidden", lambda value: value % 2 == 0, "even, to be split in halves")
    if study.text.source == study.text.target:
        raise Problem(f"--source and --target must differ, got {study.text.source} for both", code=2)
    check_numbers(study, study.learning)


def stored(folder: Path) -> tuple[str, Study]:
    """Recipe and settings of the run in a folder.

    Raises:
        Problem: its configuration is not of this version.
    """
    path = folder / "config.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        study = read_typed(Study, facts["study"])
        name = facts["recipe"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise Problem(f"{path} is no configuration of a translation run: {error}") from error
    check(study)
    return name, study


def resume(folder: Path) -> None:
    """Go on with the run in a folder.

    Raises:
        Problem: nothing is left to do.
    """
    go_on(Translation(stored(folder)[1]), folder)


def go_on(task: Translation, folder: Path) -> None:
    """Take the steps that are left, and say what the run came to."""
    torch.set_num_threads(task.study.threads)
    steps, learner = task.study.learning.steps, TranslationLearner(task)
    with contextlib.closing(Course(learner, folder, f"revtune train --resume {folder}")) as course:
        if (folder / "result.json").exists():
            raise Problem(f"{folder} is finished: all {learner.steps} steps are done")
        with TunedReport(steps, task.measure).shown() as report:
            course.learn(lambda learner, clock: learner.steps >= steps, report)
        spent = course.clock.now()
        learner.take_best()
        scores = scored(task, learner.model.eval(), Decoding())
        result = course.result(**spent, **scores, epoch=task.epoch, bits=stored_bits(task, learner.model))
    print(f"\nbest held-out {measure(task.measure, result['valid'])}, at step {result['step']}")
    print(f"test BLEU {result['bleu']:.2f} by beam, {result['greedy_bleu']:.2f} greedy ({result['signature']})")
    print(f"the run is in {folder}; next:\n  revtune translate {folder}")


def scored(task: Translation, model: Translator, how: Decoding) -> dict[str, Any]:
    """BLEU of the test sentences, by beam search and greedy."""
    lines, facts = task.pairs.splits["test"].lines, dict[str, Any]()
    for name, one in (("bleu", how), ("greedy_bleu", dataclasses.replace(how, beam=1))):
        interpreter = Interpreter(model, task.pairs.source, task.pairs.target, one)
        found = [translated.text for translated in interpreter(lines.source)]
        facts[name], facts["signature"] = bleu(found, lines.target, task.study.text.unit)
    return facts


@dataclass(frozen=True)
class Learned:
    """A run that can be used: its settings, vocabularies, and best translator, in evaluation mode."""

    study: Study
    source: Lexicon
    target: Lexicon
    model: Translator


def opened(folder: Path) -> Learned:
    """The run in a folder, for which no data are needed.

    Raises:
        Problem: it has not come to its end, or a file of it is damaged.
    """
    path, words = folder / "weights.safetensors", folder / "vocabulary.json"
    _, study = stored(folder)
    if not path.exists():
        raise Problem(f"{folder} has no weights yet; revtune train --resume {folder} goes on with it")
    try:
        facts = json.loads(words.read_text(encoding="utf-8"))
        source, target = lexicon(facts["source"]), lexicon(facts["target"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise Problem(f"{words} holds no vocabularies: {error}") from error
    torch.set_num_threads(study.threads)
    model = build(study.net, len(source), len(target))
    checkpoint.load_weights(model, checkpoint.read(path), path)
    return Learned(study, source, target, model.eval())
