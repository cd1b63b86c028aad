"""Translation as a task: sentence pairs in batches of like length, a translator, and how well it does."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn

from revtune import checkpoint
from revtune.buckets import batch, by_length, order
from revtune.errors import NonFiniteError
from revtune.generators import random_states, set_random_states
from revtune.learner import Learner, weight_optimizer
from revtune.pairs import Language, Pairs, Split, Unit, lines_of, pairs
from revtune.task import Learning
from revtune.translator import Batch, Net, Translator, build

Source = Literal["multi30k", "iwslt14"]


@dataclass(frozen=True, kw_only=True)
class Text:
    """Which sentence pairs."""

    name: Annotated[Source, tyro.conf.Fixed] = "multi30k"
    source: Language = "en"
    """Language to translate from."""
    target: Language = "de"
    """Language to translate to."""
    unit: Unit = "word"
    """Words as the files have them, or sub-words learnt from the raw text."""
    vocabulary: int = 50_000
    """Most words, or sub-words, of each language."""
    fewest: int = 2
    """How often a word must come up to be one of the vocabulary."""
    longest: int = 50
    """Words of the longest sentence that is learnt."""
    data: Path | None = None
    """Folder with data sets by name; default: the environment's REVTUNE_DATA, then the hub."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The settings of a translation run."""

    text: Annotated[Text, tyro.conf.arg(name="")] = field(default_factory=Text)
    net: Annotated[Net, tyro.conf.arg(name="")] = field(default_factory=Net)
    learning: Annotated[Learning, tyro.conf.arg(name="")] = field(default_factory=Learning)
    seed: int = 1
    """Seed of weights, order and masks."""
    threads: int = 1
    """Threads of torch."""


class Translation:
    """Data of a study and how they are gone through.

    Args:
        study: its settings.

    Attributes:
        pairs: vocabularies and splits.
        measure: the name of the figure that people quote.
    """

    measure = "perplexity"

    def __init__(self, study: Study) -> None:
        text = study.text
        lines = lines_of(text.name, text.unit, text.source, text.target, text.data)
        self.study = study
        self.pairs: Pairs = pairs(lines, unit=text.unit, most=text.vocabulary, fewest=text.fewest, longest=text.longest)
        self._order: tuple[int, list[list[int]]] | None = None

    def digest(self) -> str:
        """What tells the data from others."""
        return self.pairs.digest()

    def net(self) -> Translator:
        """A fresh translator, its weights by the study's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.study.seed)
            return build(self.study.net, len(self.pairs.source), len(self.pairs.target))

    @property
    def epoch(self) -> int:
        """Updates of a pass over the training pairs."""
        return -(-len(self.pairs.splits["train"].pairs) // self.study.learning.batch)

    def train_batch(self, step: int) -> Batch:
        """The batch of an update, from 0 on: a function of its number and the seed."""
        done, place = divmod(step, self.epoch)
        there = self.pairs.splits["train"].pairs
        if self._order is None or self._order[0] != done:
            self._order = done, order(there, self.study.learning.batch, self.study.seed, done)
        return batch([there[one] for one in self._order[1][place]], self.pairs.target.start)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Mean loss in nats a word, the ends counted, and its exponential."""
        assert isinstance(model, Translator)
        there, total, words = self.pairs.splits[split].pairs, 0.0, 0
        for numbers in by_length(there, self.study.learning.batch):
            some = batch([there[one] for one in numbers], self.pairs.target.start)
            total += model.loss(some).item()
            words += int(some.lengths.sum())
        return {"loss": total / words, "perplexity": math.exp(min(total / words, 99.0))}


class TranslationLearner(Learner):
    """Learns to translate.

    Args:
        task: what from.
    """

    model: Translator

    def __init__(self, task: Translation) -> None:
        super().__init__(task)
        torch.manual_seed(task.study.seed)
        self.translation, self.model = task, task.net()
        self.optimizer = weight_optimizer(self.learning)([{"params": list(self.model.parameters())}])
        self._done = 0

    @property
    def steps(self) -> int:
        """As in `Learner`."""
        return self._done

    def update(self) -> float:
        """As in `Learner`."""
        return self.learn(self.translation.train_batch(self._done))

    def learn(self, some: Batch) -> float:
        """Update the weights by a batch; the mean loss in nats a word."""
        self.model.train()
        loss = self.model.loss(some) / int(some.lengths.sum())
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.learning.clip or math.inf)
        if not torch.isfinite(loss) or not torch.isfinite(norm):
            raise NonFiniteError(f"step {self._done + 1} has loss {loss.item()} and a gradient of norm {norm.item()}")
        self.optimizer.step()
        self._done += 1
        return loss.item()

    def values(self) -> dict[str, float]:
        """As in `Learner`: the learning rate."""
        return {"lr": self.optimizer.param_groups[0]["lr"]}

    def weights(self) -> dict[str, Tensor]:
        """As in `Learner`."""
        return checkpoint.weights(self.model)

    def state(self) -> dict[str, Any]:
        """As in `Learner`."""
        device = next(self.model.parameters()).device
        return super().state() | {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "random": random_states(device), "steps": self._done,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """As in `Learner`."""
        super().restore(state)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._done = state["steps"]
        set_random_states(state["random"])


def recipe(name: Source, *, full: bool, layers: int = 1, hidden: int = 300, sliced: int = 20) -> Study:
    """Two cores in an hour, by Adam; in full the papers' settings, by SGD for 80 epochs."""
    base = Study(
        text=Text(name=name), net=Net(layers=layers, hidden=hidden, embedding=hidden, attend=f"emb+slice:{sliced}")
    )
    adam = Learning(
        steps=9_000, batch=64, optimizer="adam", lr=2e-3, schedule="plateau", patience=2, clip=1.0, valid_every=227
    )
    if not full:
        return replace(base, learning=adam)
    sgd = replace(adam, steps=36_240, optimizer="sgd", lr=0.2, momentum=0.0, patience=1, clip=5.0, valid_every=453)
    return replace(base, text=replace(base.text, fewest=1), learning=sgd)
