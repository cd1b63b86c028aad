"""A run's training step beside the same with torch's own layer at this very shape, measured here and now.

Memory is the peak during a step above what was in use before it, minus the gradients that remain, in a process of its
own as in `revtune bench memory`: the middle one of three. For times, the two take turns in one process, as in
`revtune bench speed`. A step is encoder, layer, readout, loss and backward, at the run's dropout rates as they began.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from revtune.program import recipes
from revtune.program.bench import worker
from revtune.program.bench.measuring import (
    LEAST_ROUNDS,
    TURN,
    check_resident,
    gradient_bytes,
    keep_to,
    peak_of,
    turns,
    warmed_up,
)
from revtune.program.bench.worker import Job, Record
from revtune.program.errors import Problem
from revtune.program.language import model as language
from revtune.program.language.regularizers import by_option, in_force, starts
from revtune.program.language.run import Run
from revtune.program.machine import processors
from revtune.program.report.story import Story, Table
from revtune.program.runs import followed
from revtune.program.runs.folder import REPLAYED, command_line
from revtune.program.studies import tuned
from revtune.program.tasks.plain_learner import PlainLearner
from revtune.program.tasks.task import with_place
from revtune.program.translation import run as translation
from revtune.program.translation.learner import TranslationLearner
from revtune.program.translation.saved_vocabulary import task_of
from revtune.tuning.conversion.replay import values_at

PARTNERS = {"revgru": "gru", "revlstm": "lstm", "gru": "revgru", "lstm": "revlstm"}
"""Ours of torch's layers, and the other way round."""

NAMES = {"revgru": "RevGRU", "revlstm": "RevLSTM", "gru": "nn.GRU", "lstm": "nn.LSTM"}

PROCESSES = 3

MEBI = 1e6


@dataclass(frozen=True, kw_only=True)
class StepJob(Job):
    """What a worker measures: the memory of one model's step, or the times of two models' that take turns.

    Attributes:
        folder: of the run.
        kind: of the run.
        models: one, or two.
    """

    folder: str
    kind: str
    models: tuple[str, ...]


def add(told: Story, kind: str, *, measure: bool) -> None:
    """Tell of memory and time beside torch's layer, or why they are missing.

    Args:
        told: the story of a folder.
        kind: of the folder.
        measure: whether to measure, which takes a minute.
    """
    if kind not in MODELS:
        return told.note("beside", "Nothing to measure: several networks learnt here; revtune bench has such figures.")
    model = MODELS[kind](told.folder)
    if model is None:
        return told.note("beside", "Nothing to measure: the network has no recurrent layer that ours stands in for.")
    if not measure:
        command = command_line("report", told.folder, "--measure")
        return told.note("beside", f"Missing: nothing was measured beside torch's layer; {command} does it.")
    try:
        told.tables.append(measured(told.folder, kind, model))
    except Problem as error:
        told.note("beside", f"Missing: {error}.")


def measured(folder: Path, kind: str, model: str) -> Table:
    """Memory and time of a step of a run's model, and of its counterpart's.

    Raises:
        Problem: this system does not tell memory, or a worker fails.
    """
    check_resident()
    ours, theirs = sorted((model, PARTNERS[model]), key=lambda name: not name.startswith("rev"))
    job = StepJob(threads=min(threads_of(folder, kind), processors()), folder=str(folder), kind=kind, models=())
    peaks = {name: typical(replace(job, models=(name,))) for name in (ours, theirs)}
    times = asked(replace(job, models=(ours, theirs)))["seconds"]
    rows = [(NAMES[name], f"{peaks[name] / MEBI:,.1f}", f"{1e3 * times[name]:,.2f}") for name in (ours, theirs)]
    less, share = peaks[theirs] / max(1, peaks[ours]), times[ours] / times[theirs]
    rows.append((f"{NAMES[ours]} takes", f"{less:.1f}x less", f"{share:.2f} of the time"))
    where = f"{shape_of(folder, kind)}, on {counted(job.threads, 'thread')}"
    return Table("beside", f"A training step at {where}, measured with this page", ("", "memory, MB", "time, ms"), rows)


def typical(job: StepJob) -> int:
    """The middle one of what several processes measured, in bytes."""
    return int(sorted(asked(job)["bytes"] for _ in range(PROCESSES))[PROCESSES // 2])


def asked(job: StepJob) -> Record:
    """What a worker measured.

    Raises:
        Problem: it failed, with its last words.
    """
    record = worker.outcome(__name__, job.text())
    if "error" in record:
        raise Problem(f"the training step could not be measured: {record['error'].rpartition('Problem: ')[2]}")
    return record


def work(job: StepJob) -> Record:
    """Measure in this process."""
    keep_to(job.threads)
    torch.manual_seed(1)
    losses = {name: LOSSES[job.kind](Path(job.folder), name) for name in job.models}
    steps = {name: step(model, loss) for name, (model, loss) in losses.items()}
    if len(steps) > 1:
        times = turns(steps, LEAST_ROUNDS, warmed_up(steps, TURN))
        return {"seconds": {name: median(each) for name, each in times.items()}}
    ((name, only),) = steps.items()
    only()  # once before, since what is made at a first step is no part of the others
    model = losses[name][0]
    model.zero_grad(set_to_none=True)
    peak = peak_of(only, torch.device("cpu"))
    return {"bytes": peak - gradient_bytes(model.parameters())}


def step(model: nn.Module, parts: Callable[[], Iterable[Tensor]]) -> Callable[[], None]:
    """A training step without the update, which is the same for both."""

    def taken() -> None:
        model.zero_grad(set_to_none=True)
        for loss in parts():
            loss.backward()

    return taken


Loss = tuple[nn.Module, Callable[[], Iterable[Tensor]]]
"""A model in training mode, and the parts of its loss on a batch, of which each goes backward before the next."""


def text_loss(folder: Path, name: str) -> Loss:
    """Of a language model, on tokens drawn anew."""
    run = Run(folder)
    config, tokens = run.config(), len(run.vocabulary())
    net = replace(config.net, model=name)  # type: ignore[arg-type]
    model = language.build(in_force(net, begun_with(run)), tokens).train()
    drawn = torch.randint(tokens, (config.learning.length + 1, config.learning.batch))
    return model, lambda: [model.loss(drawn[:-1], drawn[1:], None)[0]]


def begun_with(run: Run) -> dict[str, float]:
    """The rates, by option, that a language run began with: where tuning starts, or the first of a run's it follows."""
    if (schedule := run.replayed()) is not None:
        return by_option(values_at(schedule, 0))
    config = run.config()
    tuned_ones = {} if config.tune == "off" else starts(config.net, config.tuned_from)
    return by_option({name: hyper.initial for name, hyper in tuned_ones.items()})


def tuned_loss(folder: Path, name: str) -> Loss:
    """Of the network of a recipe with a task, plain, at its first values, on its first batch."""
    recipe, _, study = tuned.stored(folder)
    placed: Any = with_place(study, folder)
    task = recipes.find(recipe).task(replace(placed, model=name))
    first = values_at(followed.read(folder / REPLAYED), 0) if tuned.replays(folder) else {}
    values = {hyper: first.get(hyper, kind.initial) for hyper, kind in task.hypers().items()}
    learner = PlainLearner(task, values)
    batch = learner.task.train_batch(0)
    return learner.model.train(), lambda: learner.parts(batch)


def translation_loss(folder: Path, name: str) -> Loss:
    """Of a translator, on its first batch."""
    study = translation.with_place(translation.stored(folder)[1], folder)
    net: Any = replace(study.net, model=name)  # type: ignore[arg-type]
    if study.tune != "off":
        began = {rate: getattr(net, rate) or study.tuned_from for rate in ("dropout", "slice_dropout")}
        net = replace(net, **began)
    learner = TranslationLearner(task_of(folder, replace(study, net=net)))
    batch = learner.task.train_batch(0)
    return learner.model.train(), lambda: learner.parts(batch)


LOSSES = {"text": text_loss, "tuned": tuned_loss, "signal": tuned_loss, "translation": translation_loss}


def text_model(folder: Path) -> str | None:
    """The layer of a language model."""
    return Run(folder).config().net.model


MODELS: dict[str, Callable[[Path], str | None]] = {
    "text": text_model,
    "tuned": lambda folder: getattr(tuned.stored(folder)[2], "model", None),
    "signal": lambda folder: getattr(tuned.stored(folder)[2], "model", None),
    "translation": lambda folder: translation.stored(folder)[1].net.model,
}
"""The recurrent layer of a run, by its kind; None where it has none."""


def threads_of(folder: Path, kind: str) -> int:
    """The threads that a run learns on."""
    if kind == "text":
        return Run(folder).config().learning.threads
    return (tuned.stored(folder)[2] if kind in ("tuned", "signal") else translation.stored(folder)[1]).threads


def shape_of(folder: Path, kind: str) -> str:
    """The sizes of a run's training step, in words."""
    if kind == "text":
        run = Run(folder)
        net, learning = run.config().net, run.config().learning
        sizes = f"T = {learning.length}, B = {learning.batch}, V = {len(run.vocabulary()):,}"
        return f"{sizes}, embedding {net.embedding}, H = {net.hidden}, {counted(net.layers, 'layer')}"
    if kind == "tuned":
        study: Any = tuned.stored(folder)[2]
        return f"T = {study.length}, B = {study.learning.batch}, H = {study.width}"
    if kind == "signal":
        study = tuned.stored(folder)[2]
        return f"the first batch's length, B = {study.learning.batch}, H = {study.hidden}"
    study = translation.stored(folder)[1]
    sizes = f"H = {study.net.hidden}, {counted(study.net.layers, 'layer')} each"
    return f"B = {study.learning.batch}, the first batch's lengths, {sizes}"


def counted(count: int, what: str) -> str:
    """So many of something."""
    return f"{count} {what}{'s' if count > 1 else ''}"


if __name__ == "__main__":
    print(json.dumps(work(StepJob.of(sys.argv[1]))))
