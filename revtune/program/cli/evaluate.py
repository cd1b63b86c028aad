"""`revtune evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from revtune.program.cli.folders import opened, refuse_other, translates_in, tuned_in
from revtune.program.cli.options import parse

if TYPE_CHECKING:
    from revtune.program.tasks.task import Split


def evaluate(arguments: list[str]) -> None:
    """Print a run's loss on held-out data."""
    from revtune.program.cli.options import Evaluate
    from revtune.program.language.live import measure
    from revtune.program.language.run import held_out_loss

    options: Evaluate = parse(Evaluate, arguments, "evaluate")
    refuse_other(options.run, "evaluate")
    splits: tuple[Split, ...] = ("valid", "test") if options.split == "both" else (options.split,)
    if tuned_in(options.run):
        evaluate_tuned(options.run, splits)
        return
    if translates_in(options.run):
        evaluate_translation(options.run, splits)
        return
    run = opened(options.run)
    unit = run.config().text.unit
    for split in splits:
        loss = held_out_loss(run, split)
        print(f"{split}: {measure(unit, loss)} ({loss:.4f} nats a {unit})")


def evaluate_translation(folder: Path, splits: tuple[Split, ...]) -> None:
    """Print the perplexity of a translator, and its BLEU on the test sentences."""
    from revtune.program.tasks.live import measure
    from revtune.program.translation.interpreter import Decoding
    from revtune.program.translation.run import opened
    from revtune.program.translation.saved_vocabulary import task_of
    from revtune.program.translation.scores import scored

    learned = opened(folder)
    task, model = task_of(folder, learned.study), learned.model
    for split in splits:
        print(f"{split}: {measure(task.measure, task.evaluate(model, split))}")
    if "test" in splits:
        found = scored(task, model, Decoding())
        print(f"test: BLEU {found['bleu']:.2f} by beam, {found['greedy_bleu']:.2f} greedy ({found['signature']})")


def evaluate_tuned(folder: Path, splits: tuple[Split, ...]) -> None:
    """Print the figures of a run whose hyperparameters were tuned."""
    from revtune.program.studies.tuned import opened
    from revtune.program.tasks.live import measure

    task, model = opened(folder)
    for split in splits:
        print(f"{split}: {measure(task.measure, task.evaluate(model, split))}")
