"""Time of a translator's training updates: contestants take turns on the same sentence pairs, in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from revtune.program.bench.measuring import turns
from revtune.program.translation.learner import TranslationLearner
from revtune.program.translation.task import TranslationStudy, TranslationTask

ROUNDS = 7
"""Of which medians are told."""


BATCHES = 8
"""Updates of a round, from all over a pass: batches differ in length."""


def timed(
    studies: Mapping[str, TranslationStudy], *, rounds: int = ROUNDS, batches: int = BATCHES
) -> dict[str, list[float]]:
    """Seconds of an update by contestant and round: means over batches that stand evenly in a pass over the data.

    Args:
        studies: settings by contestant, of one recipe, data and seed.
        rounds: every other one goes through the contestants backwards; one more, before all, does not count.
        batches: whose updates are timed.
    """
    learners = {name: TranslationLearner(TranslationTask(study)) for name, study in studies.items()}
    runs: dict[str, Callable[[], object]] = {
        name: partial(learn, learner, batches) for name, learner in learners.items()
    }
    for study in studies.values():
        torch.set_num_threads(study.threads)
    for run in runs.values():
        run()  # does not count
    return {name: [time / batches for time in seconds] for name, seconds in turns(runs, rounds).items()}


def learn(learner: TranslationLearner, batches: int) -> None:
    """Update the weights by batches that stand evenly in a pass."""
    epoch = learner.task.epoch
    for number in range(batches):
        learner.learn(learner.task.train_batch(number * epoch // batches))
