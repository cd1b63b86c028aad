"""Who competes in a case of `revtune bench tuning`, each as a function that takes one step on a batch in memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from revtune.program import recipes
from revtune.program.bench.measuring import StepFunction
from revtune.program.bench.tuning_cases import TUNED, StepKind, TuningCase
from revtune.program.data.image_parts import Parts
from revtune.program.data.text import Corpus
from revtune.program.data.vocabulary import END, UNKNOWN, Words
from revtune.program.tasks.plain_learner import PlainLearner
from revtune.program.tasks.task import Task
from revtune.program.tasks.tuned_learner import TunedLearner

SHAPES = {"mnist": (1, 28, 28), "fashion": (1, 28, 28), "cifar10": (3, 32, 32)}

CLASSES = 10


def steps_of(case: TuningCase) -> dict[str, StepFunction]:
    """The competitors by name, a plain step first."""
    kinds: tuple[StepKind, ...] = ("plain", *TUNED)
    return {kind: step_of(learner_of(case, kind), kind) for kind in kinds}


def learner_of(case: TuningCase, kind: StepKind) -> PlainLearner | TunedLearner:
    """What a competitor learns by."""
    task = task_of(case)
    return PlainLearner(task) if kind == "plain" else TunedLearner(task, "stn" if kind.startswith("STN") else "delta")


def step_of(learner: PlainLearner | TunedLearner, kind: StepKind) -> StepFunction:
    """A learner's step of a kind, with its update, beginning and ending without gradients."""
    batch = learner.task.train_batch(0)
    if isinstance(learner, PlainLearner):

        def learn() -> None:
            learner.learn(batch)
            learner.optimizer.zero_grad()

        return learn
    tuner = learner.tuner
    return lambda: tuner.valid_step(batch) if kind.endswith("validation") else tuner.train_step(batch)


def task_of(case: TuningCase) -> Task:
    """The recipe's task at these sizes, on random data."""
    recipe: Any = recipes.find(case.net)
    study = recipe.study("paper" if case.net == "ptb_lstm" else "small")
    study = dataclasses.replace(study, width=case.width, learning=dataclasses.replace(study.learning, batch=case.batch))
    if case.net == "ptb_lstm":
        study = dataclasses.replace(study, length=case.steps, model=case.model)
    task: Task = recipe.task(study, random_words(case) if case.net == "ptb_lstm" else random_images(case))
    return task


def random_images(case: TuningCase) -> Parts:
    """A batch of images of random pixels and classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (case.batch, *SHAPES[case.net]), dtype=torch.uint8, generator=generator)
    part = pixels, torch.randint(CLASSES, (case.batch,), generator=generator)
    return Parts(part, part, part)


def random_words(case: TuningCase) -> Corpus:
    """A batch of random words."""
    words = torch.randint(case.tokens, (case.batch * (case.steps + 1),), generator=torch.Generator().manual_seed(0))
    vocabulary = Words([*map(str, range(case.tokens - 2)), END, UNKNOWN])
    return Corpus(vocabulary, words, words, words)
