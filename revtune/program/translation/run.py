"""A translation run from its first step to its BLEU, or the rest of one, and a finished one to use."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated

import torch
import tyro

from revtune.program.data.moses import shaped
from revtune.program.errors import Problem
from revtune.program.files import absolute, read_text, write
from revtune.program.layers import REVERSIBLE
from revtune.program.runs import checkpoint, tracking
from revtune.program.runs.folder import claimed, command_line, config_of, refuse_taken
from revtune.program.runs.places import near, place
from revtune.program.runs.seals import Seals
from revtune.program.runs.tracking import Tracked
from revtune.program.tasks.learner import Learner
from revtune.program.tasks.live import measure
from revtune.program.tasks.loop import WEIGHTS, TaskRun, best_weights, check_seals
from revtune.program.translation.interpreter import Decoding, Interpreter
from revtune.program.translation.learner import learner
from revtune.program.translation.saved_vocabulary import SavedVocabulary, read_vocabulary, task_of, vocabulary_json
from revtune.program.translation.scores import scored
from revtune.program.translation.stored_bits import stored as stored_bits
from revtune.program.translation.task import TranslationStudy, TranslationTask
from revtune.program.translation.translator import Attended, Translator, build
from revtune.program.tuning import check_tunes, in_a_line
from revtune.program.typed import check_each, check_numbers, read_typed, reason, told_of

SHOWN = 4
"""Sentences that a tracker is shown."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Learn to translate."""

    study: Annotated[TranslationStudy, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run; by default the next free runs/<recipe>-<n>."""
    track: Tracked = "none"
    """Which tracker is told of losses, bits, memory and translations besides metrics.jsonl."""
    full: bool = False
    """The settings of the papers, many hours instead of half of one."""


def start(name: str, options: Options) -> Path:
    """A new run of a recipe, from its first step to its last; its folder."""
    refuse_taken(options.out)
    import_module("sacrebleu")  # an extra: better missed now than when all is learnt
    tracking.check(options.track)
    text = options.study.text
    study = dataclasses.replace(options.study, text=dataclasses.replace(text, data=absolute(text.data)))
    check(study)
    task = TranslationTask(study)
    one = learner(task)
    for note in notes(task):
        print(note)
    settings = {"recipe": name, "study": dataclasses.asdict(study)}
    with claimed(name, options.out) as folder:
        write(folder / "vocabulary.json", json.dumps(vocabulary_json(task)).encode())
        settings |= near(folder, data=study.text.data)
        write(folder / "config.json", json.dumps(settings, indent=2, default=str).encode() + b"\n")
    go_on(one, folder, Seals.of(folder), options.track)
    return folder


def notes(task: TranslationTask) -> Iterator[str]:
    """What to know of the data before a run begins."""
    if task.note:
        yield f"{task.study.text.name}: {task.note}"
    for split, part in task.pairs.splits.items():
        if part.empty or part.long:
            yield f"{split}: left out {part.empty} pairs with an empty side and {part.long} beyond --longest"


def check(study: TranslationStudy) -> None:
    """Raise `Problem` for the first setting that no run can have."""
    for group, names in ((study.text, "vocabulary fewest longest"), (study.net, "embedding hidden layers")):
        check_each(group, names, lambda value: value >= 1, "at least 1")
        check_each(group, names, lambda value: value < 2**31, "below 2^31")
    Attended.of(study.net.attend, study.net.hidden)  # raises for what it cannot read
    check_each(study.net, "dropout slice_dropout", lambda value: 0 <= value < 1, "a rate from 0 to below 1")
    limit = "above 0, or None for no limit"
    check_each(study.net, "max_forget_bits", lambda value: value is None or 0 < value < math.inf, limit)
    if study.net.model in REVERSIBLE:
        check_each(study.net, "hidden", lambda value: value % 2 == 0, "even, to be split in halves")
    if study.text.source == study.text.target:
        raise Problem(f"--source and --target must differ, got {study.text.source} for both", code=2)
    check_numbers(study, study.learning)
    check_each(study.learning, "fall", lambda value: value > 1, "above 1")
    if study.tune == "delta":
        raise Problem(
            "--tune must be stn or off for a translator, got delta: what an encoder hands to attention moves with "
            "hyperparameters, and Delta-STN does not follow that into the decoder", code=2,
        )  # fmt: skip
    check_tunes(study, study.learning.steps, study.net, "dropout slice_dropout")
    if study.tune != "off" and study.net.loss_in_blocks:
        raise Problem("--loss-in-blocks is for --tune off, as STN wants the loss of each sentence", code=2)


def stored(folder: Path) -> tuple[str, TranslationStudy]:
    """Recipe and settings of the run in a folder.

    Raises:
        Problem: it holds none, or its configuration is not of this version.
    """
    path = config_of(folder)
    try:
        settings = json.loads(read_text(path))
        name, study = settings["recipe"], read_typed(TranslationStudy, settings["study"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise Problem(f"{path} is no configuration of a translation run: {reason(error)}") from error
    with told_of(path):
        check(study)
    return name, study


def with_place(study: TranslationStudy, folder: Path, data: Path | None = None) -> TranslationStudy:
    """The study of the run in a folder with the path that its data have now, `data` for whoever says so."""
    found = place("data", study.text.data, folder, data)
    return dataclasses.replace(study, text=dataclasses.replace(study.text, data=found))


def resume(
    folder: Path, *, accept_edits: bool = False, data: Path | None = None, track: Tracked = "none"
) -> None:  # fmt: skip
    """Go on with the run in a folder; `data` is the folder with data sets, where that has been moved.

    Raises:
        Problem: nothing is left to do.
    """
    import_module("sacrebleu")  # as in `start`
    study, seals = stored(folder)[1], Seals.of(folder, accept_edits=accept_edits)
    read_vocabulary(folder, study)  # before the seals, to say what is wrong with it
    check_seals(folder, seals)
    with told_of(folder / "config.json"):
        one = learner(task_of(folder, with_place(study, folder, data)))
    go_on(one, folder, seals, track)


def go_on(one: Learner, folder: Path, seals: Seals, track: Tracked) -> None:
    """Take the steps that are left, write what is missing of the result, and say what the run came to."""
    task = one.task
    assert isinstance(task, TranslationTask)
    torch.set_num_threads(task.study.threads)
    with contextlib.closing(TaskRun(one, folder, command_line("train", "--resume", folder), seals)) as task_run:
        task_run.metrics.track(track, one.steps)
        task_run.learn_to_end(task.measure)
        spent, last = task_run.clock.now(), one.values()
        one.take_best()
        model = one.plain().eval()
        assert isinstance(model, Translator)
        scores = scored(task, model, Decoding())
        mark = read_vocabulary(folder, task.study).mark
        bits = stored_bits(task, model)
        more = {"epoch": task.epoch, "bits": bits, "vocabularies": mark, "final_values": last}
        result = task_run.result(**spent, **scores, **more)
        if (tracker := task_run.metrics.tracker) is not None:
            tracker.log({"step": one.steps, "bleu": scores["bleu"], "greedy_bleu": scores["greedy_bleu"]})
            tracker.text("sample", "\n\n".join(shown(task, model)), one.steps)
    tuned = "" if task.study.tune == "off" else f": {in_a_line(result['values'])}"
    print(f"\nbest held-out {measure(task.measure, result['valid'])}, at step {result['step']}{tuned}")
    print(f"test BLEU {result['bleu']:.2f} by beam, {result['greedy_bleu']:.2f} greedy ({result['signature']})")
    print(f"the run is in {folder}; next:\n  {command_line('translate', folder)}")


def shown(task: TranslationTask, model: Translator) -> Iterator[str]:
    """The first sentences of the test, each with its translation below it."""
    sentences = task.pairs.splits["test"].lines.source[:SHOWN]
    for one, sentence in zip(
        Interpreter(model, task.pairs.source, task.pairs.target, Decoding())(sentences), sentences, strict=True
    ):
        yield f"{sentence}\n{one.text}"


@dataclass(frozen=True)
class Learned:
    """A run that can be used: its settings, its vocabularies, and its translator, in evaluation mode."""

    study: TranslationStudy
    vocabulary: SavedVocabulary
    model: Translator

    def shaped(self, text: str) -> str:
        """A raw sentence of the source language, brought to the form of those that were learnt from."""
        return shaped(text, self.vocabulary.form, self.study.text.source)


def opened(folder: Path, *, accept_edits: bool = False) -> Learned:
    """The run in a folder, for which no data are needed.

    Raises:
        Problem: it has not come to its end, or a file of it is damaged.
    """
    _, study = stored(folder)
    saved, vocabulary = best_weights(folder), read_vocabulary(folder, study)
    path = folder / WEIGHTS
    Seals.of(folder, accept_edits=accept_edits).check(saved.seals, path)
    mark = saved.facts.get("vocabularies", vocabulary.mark)  # runs of an earlier version have none
    if mark != vocabulary.mark and not accept_edits:
        raise Problem(f"{folder / 'vocabulary.json'} has been changed: {path} was not learnt with it; put it back")
    torch.set_num_threads(study.threads)
    model = build(study.net, len(vocabulary.source), len(vocabulary.target))
    checkpoint.load_weights(model, saved, path)
    return Learned(study, vocabulary, model.eval())
