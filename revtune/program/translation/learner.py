"""A translator, as it learns: at its dropout rates as they are, or by STN."""

from __future__ import annotations

from torch import Tensor

from revtune.program.data.buckets import Batch
from revtune.program.tasks.learner import Learner
from revtune.program.tasks.tuned_learner import TunedLearner
from revtune.program.tasks.weight_learner import WeightLearner
from revtune.program.translation.task import TranslationTask
from revtune.program.translation.translator import Translator


class TranslationLearner(WeightLearner):
    """Learns to translate.

    Args:
        task: whose sentence pairs.
    """

    task: TranslationTask
    model: Translator

    def __init__(self, task: TranslationTask) -> None:
        super().__init__(task)
        self.fall = task.study.learning.fall

    def build(self) -> Translator:
        """The translator that the study describes."""
        return self.task.net()

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss in nats a word."""
        return self.model.loss(batch) / int(batch.lengths.sum())

    def values(self) -> dict[str, float]:
        """The learning rate, as a translator has no hyperparameters that are tuned."""
        return {"lr": self.optimizer.param_groups[0]["lr"]}


def learner(task: TranslationTask) -> Learner:
    """The learner that a study asks for."""
    if task.study.tune == "off":
        return TranslationLearner(task)
    made = TunedLearner(task, task.study.tune)
    made.fall = task.study.learning.fall
    return made
