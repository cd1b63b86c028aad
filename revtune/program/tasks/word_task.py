"""Language models as a task: text read in order by streams, a state that goes from segment to segment, perplexity.

Held-out text has streams and a state of its own. Losses are in nats a word.

Shapes: T steps, B streams, V words.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.program.data import text_sources as sources
from revtune.program.data.lines import decode
from revtune.program.data.readings import Reading, as_learnt
from revtune.program.data.text import Corpus, segment, streams, word_corpus
from revtune.program.errors import Problem
from revtune.program.layers import REVERSIBLE, Model
from revtune.program.tasks.task import Split, Study, Task
from revtune.tuning.hypers.hyperparameters import Hyperparameters

HELD_OUT = 5
"""How many times fewer words are held out than learnt from."""

MOST_NATS = 99.0
"""A perplexity is at most e to this, as `math.exp` overflows beyond 709."""

Source = Literal["ptb", "wikitext2"]


@dataclass(frozen=True, kw_only=True)
class WordStudy(Study):
    """Settings of a study on words."""

    words: int | None = 20_000
    """Words of the training text to use, from its beginning, and a fifth as many of the held-out text, or fewer up to
    the end of a line; None for all."""
    vocabulary: int = 10_000
    """So many of the most frequent words are told apart."""
    length: int = 35
    """Words between two updates, which gradients go back through."""
    width: int = 100
    """Units of each layer, and of the embedding."""
    model: Model = "lstm"
    """Recurrent layers; lstm and gru are torch's own, which store every state."""


class Segment(NamedTuple):
    """Words (T, B), the words after them, and whether they are the first of the text."""

    inputs: Tensor
    targets: Tensor
    first: bool


class Out(NamedTuple):
    """Logits (T, B, V), and outputs (T, B, H) of the last layer before and after dropout."""

    logits: Tensor
    outputs: Tensor
    dropped: Tensor


class WordTask(Task):
    """A recurrent language model.

    Args:
        study: the settings.
        corpus: the text, as numbers; loaded by default.

    Attributes:
        source: which text, by name.

    Raises:
        Problem: the text is missing, or has fewer words than asked for.
    """

    source: ClassVar[Source]
    carry, batch_dim = True, 1
    measure: ClassVar[str] = "perplexity"
    study: WordStudy

    def __init__(self, study: WordStudy, corpus: Corpus | None = None) -> None:
        super().__init__(study)
        self.corpus = corpus or text(self.source, study)
        parts = {"train": self.corpus.train, "valid": self.corpus.valid, "test": self.corpus.test}
        self.rows = {name: streams(part, study.learning.batch, name=name) for name, part in parts.items()}

    @classmethod
    def as_learnt(cls, study: WordStudy, digest: str | None) -> Self:
        """The task on the text of a digest, read as by earlier versions where that is what it was learnt from."""
        return cls(study, text(cls.source, study, digest))

    def digest(self) -> str:
        """SHA-256 of the text and its vocabulary."""
        return self.corpus.digest()

    @property
    def streams(self) -> bool:
        """Whether its layers rewind."""
        return self.study.model in REVERSIBLE

    def stream(self, model: Any, batch: Segment, h: Any) -> dict[str, Any]:
        """What a reversible network's loss is streamed from."""
        given = {
            "rnn": model.rnn, "inputs": batch.inputs, "targets": batch.targets, "encode": model.words,
            "readout": model.readout,
        }  # fmt: skip
        return {**given, "state": None} if batch.first else given

    @abstractmethod
    def build(self, hypers: Hyperparameters, words: int) -> nn.Module:
        """The network, its weights from torch's generator; `net(inputs, state)` gives `Out` and the next state."""

    def net(self, hypers: Hyperparameters) -> nn.Module:
        """A fresh network; torch's generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.study.seed)
            return self.build(hypers, len(self.corpus.vocabulary))

    def predict(self, model: nn.Module, batch: Segment, *state: Any) -> Any:
        """`Out` and the next state."""
        return model(batch.inputs, None if batch.first else state[0])

    def train_loss(self, model: nn.Module, out: Out, batch: Segment, h: Any) -> Tensor:
        """Mean cross entropy of a word in each stream, (B,), in nats."""
        losses = F.cross_entropy(out.logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        return losses.view(batch.targets.shape).mean(0)

    def valid_loss(self, out: Out, batch: Segment) -> Tensor:
        """Mean cross entropy of a word, in nats."""
        return F.cross_entropy(out.logits.flatten(0, 1), batch.targets.flatten())

    def train_batch(self, step: int) -> Segment:
        """A segment of all streams; after the last comes the first."""
        return self._segment("train", step)

    def valid_batch(self, number: int) -> Segment:
        """A segment of the held-out text's streams."""
        return self._segment("valid", number)

    def _segment(self, name: str, number: int) -> Segment:
        rows, length = self.rows[name], self.study.length
        index = number % self._segments(name)
        return Segment(*segment(rows, index * length, length), index == 0)

    def _segments(self, name: str) -> int:
        return math.ceil((len(self.rows[name]) - 1) / self.study.length)  # the last row is only a target

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Mean cross entropy in nats, and perplexity."""
        loss, count, state = 0.0, 0, None
        for number in range(self._segments(split)):
            batch = self._segment(split, number)
            mean, state = self._held_out_loss(model, batch, state)
            loss += mean.item() * batch.targets.numel()
            count += batch.targets.numel()
        return {"loss": loss / count, "perplexity": math.exp(min(loss / count, MOST_NATS))}

    def _held_out_loss(self, model: nn.Module, batch: Segment, state: Any) -> tuple[Tensor, Any]:
        """Mean cross entropy of a word, and the next state."""
        if self.streams:
            return self.streamed_loss(model, batch, state, None)
        out, state = self.predict(model, batch, state)
        return self.valid_loss(out, batch), state


def text(source: Source, study: WordStudy, digest: str | None = None) -> Corpus:
    """As much of a text as is asked for, with the vocabulary of its training part.

    Args:
        source: which text.
        study: how much of it.
        digest: of the corpus that a run learnt from; where earlier versions read the text as that one, so it is read.

    Raises:
        Problem: it is missing, or has fewer words than asked for.
    """
    return as_learnt(digest, partial(_read, source, study))


def _read(source: Source, study: WordStudy, reading: Reading) -> Corpus:
    parts = sources.named(source, study.data, reading)
    train, valid, test = (reading.words(decode(part, source)) for part in parts)
    if study.words is not None:
        if study.words > len(train):
            raise Problem(f"--words must be at most {len(train)} for {source}, got {study.words}", code=2)
        train, valid = reading.first(train, study.words), reading.first(valid, study.words // HELD_OUT)
    return word_corpus(train, valid, test, most=study.vocabulary)
