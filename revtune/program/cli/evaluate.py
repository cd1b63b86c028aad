"""`revtune evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from revtune.program import recipes
from revtune.program.cli.folders import check_moved, kind_of, opened
from revtune.program.cli.options import Evaluate, parse
from revtune.program.language.live import measure as text_measure
from revtune.program.language.run import held_out_loss
from revtune.program.studies import tuned
from revtune.program.tasks.live import measure
from revtune.program.tasks.task import Split
from revtune.program.translation import run as translation
from revtune.program.translation.interpreter import Decoding
from revtune.program.translation.saved_vocabulary import task_of
from revtune.program.translation.scores import scored


def evaluate(arguments: list[str]) -> None:
    """Print a run's loss on held-out data."""
    options: Evaluate = parse(Evaluate, arguments, "evaluate")
    kind = kind_of(options.run, "evaluate")
    check_moved(kind, options.run, options.file, options.data)
    EVALUATIONS[kind](options, ("valid", "test") if options.split == "both" else (options.split,))


def evaluate_text(options: Evaluate, splits: Sequence[Split]) -> None:
    """Print the loss of a language model."""
    run = opened(options.run, file=options.file, data=options.data, accept_edits=options.accept_edits)
    unit = run.config().text.unit
    for split in splits:
        loss = held_out_loss(run, split)
        print(f"{split}: {text_measure(unit, loss)} ({loss:.4f} nats a {unit})")


def evaluate_tuned(options: Evaluate, splits: Sequence[Split]) -> None:
    """Print the figures of the network that a task's run learnt."""
    task, model = tuned.opened(options.run, data=options.data, accept_edits=options.accept_edits)
    for split in splits:
        print(f"{split}: {measure(task.measure, task.evaluate(model, split))}")


def evaluate_translation(options: Evaluate, splits: Sequence[Split]) -> None:
    """Print the perplexity of a translator, and its BLEU on the test sentences."""
    learned = translation.opened(options.run, accept_edits=options.accept_edits)
    study = translation.with_place(learned.study, options.run, options.data)
    task, model = task_of(options.run, study), learned.model
    for split in splits:
        print(f"{split}: {measure(task.measure, task.evaluate(model, split))}")
    if "test" in splits:
        scores = scored(task, model, Decoding())
        print(f"test: BLEU {scores['bleu']:.2f} by beam, {scores['greedy_bleu']:.2f} greedy ({scores['signature']})")


EVALUATIONS: dict[recipes.Kind, Callable[[Evaluate, Sequence[Split]], None]] = {
    "text": evaluate_text, "tuned": evaluate_tuned, "translation": evaluate_translation,
    "signal": evaluate_tuned,
}  # fmt: skip
