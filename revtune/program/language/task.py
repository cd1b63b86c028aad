"""A language model as a task: text read in order by streams, a state that goes from segment to segment.

Held-out text has streams and a state of its own. Losses are in nats a token.

Shapes: T steps, B streams, V tokens.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from revtune.processes import Processes
from revtune.program.data.text import Corpus, Segment, after, segment, streams
from revtune.program.data.text_sources import Text, load
from revtune.program.errors import Problem
from revtune.program.language import regularizers
from revtune.program.language.config import LanguageStudy, Net
from revtune.program.language.evaluate import evaluate, held_out_streams
from revtune.program.language.model import Out, build
from revtune.program.layers import REVERSIBLE
from revtune.program.runs.together import own_columns
from revtune.program.tasks.task import Settings, Space, Split, Task, perplexity
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Hyper


class LanguageSettings(Settings, Protocol):
    """What a language model's task reads of its settings."""

    @property
    def text(self) -> Text:
        """Which text is read, and as what tokens."""

    @property
    def net(self) -> Net:
        """The language model."""

    @property
    def length(self) -> int:
        """Tokens of a stream in a segment of held-out text."""

    def length_of(self, step: int) -> int:
        """Tokens of a stream in a training step."""


class LanguageTask(Task):
    """A recurrent language model, its hyperparameters the dropout rates that it has and the penalties AR and TAR.

    Args:
        study: the settings.
        corpus: the text, as numbers; loaded by default.
        device: where it computes.
        tested: whether the test text is read too.
        processes: that share the streams of each part; one alone by default.

    Attributes:
        rows: streams (N, B) of each part of the text, as far as they are needed; "tuned_on" is the held-out text in as
            many streams as are learnt from.

    Raises:
        Problem: the text is missing, or too short.
    """

    carry, batch_dim = True, 1
    measure: ClassVar[str] = "perplexity"
    study: LanguageSettings

    def __init__(
        self,
        study: Any,
        corpus: Corpus | None = None,
        *,
        device: torch.device | None = None,
        tested: bool = True,
        processes: Processes | None = None,
    ) -> None:
        super().__init__(study)
        self.processes = processes or Processes()
        self.corpus, self.device = corpus or load(self.study.text), device or torch.device("cpu")
        self.rows, self._positions = dict[str, Tensor](), [0]
        for name in ("train", "tuned_on", "valid", *(["test"] if tested else [])):
            self.part(name)  # now, as it may be too short

    @classmethod
    def as_learnt(cls, study: LanguageSettings, digest: str | None) -> Self:
        """The task on the text of a digest, read as by earlier versions where that is what it was learnt from."""
        return cls(study, load(study.text, digest))

    def part(self, name: str) -> Tensor:
        """The streams of a part of the text."""
        if name not in self.rows:
            self.rows[name] = self.own(name, self.cut(name)).to(self.device)
        return self.rows[name]

    def own(self, name: str, rows: Tensor) -> Tensor:
        """The streams of this process.

        Raises:
            Problem: there are fewer than processes, of a text that is learnt from.
        """
        count, columns = self.processes.count, rows.shape[1]
        if count > columns and name in ("train", "tuned_on"):
            whose = "--batch" if name == "train" else "streams of the held-out text, by --batch and --length,"
            raise Problem(f"{whose} must be at least {count}, the number of processes, got {columns}", code=2)
        return rows if count == 1 else rows[:, own_columns(self.processes, columns)].contiguous()

    def cut(self, name: str) -> Tensor:
        """A part of the text cut into streams."""
        assert isinstance(self.study, LanguageStudy)
        learning, corpus = self.study.learning, self.corpus
        if name == "train":
            return streams(corpus.train, learning.batch, name="training")
        if name == "test":
            return held_out_streams(corpus.test, learning, name=name)
        most = learning.batch if name == "tuned_on" else None
        return held_out_streams(corpus.valid, learning, name="validation", most=most)

    def digest(self) -> str:
        """SHA-256 of the text and its vocabulary."""
        return self.corpus.digest()

    @property
    def streams(self) -> bool:
        """Whether its layers rewind."""
        return self.study.net.model in REVERSIBLE

    def hypers(self) -> dict[str, Hyper]:
        """A rate for each dropout, and the weights of both penalties."""
        assert isinstance(self.study, LanguageStudy)
        return regularizers.starts(self.study.net, self.study.tuned_from)

    def spaces(self) -> dict[str, Space]:
        """Any rate but those that drop nearly everything, and penalties over four decades."""
        penalty, rate = Space(1e-3, 10.0, log=True), Space(0.0, 0.9)
        return {name: penalty if name in regularizers.PENALTIES else rate for name in self.hypers()}

    def build(self, hypers: Hyperparameters | None, tokens: int) -> nn.Module:
        """The network, its weights from torch's generator; without hyperparameters its rates are the settings'."""
        return build(self.study.net, tokens, hypers)

    def net(self, hypers: Hyperparameters | None) -> nn.Module:
        """A fresh network; torch's generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.study.seed)
            return self.build(hypers, len(self.corpus.vocabulary))

    def stream(self, model: Any, batch: Segment, h: Any) -> dict[str, Any]:
        """What a reversible network's loss is streamed from."""
        return regularizers.stream(model, batch, h)

    def predict(self, model: nn.Module, batch: Segment, *state: Any) -> tuple[Out, Any]:
        """The prediction of a storing network, and the next state."""
        return regularizers.predict(model, batch, *state)

    def train_loss(self, model: nn.Module, out: Out, batch: Segment, h: Any) -> Tensor:
        """Mean cross entropy of a token in each stream, and its penalties, (B,), in nats."""
        return regularizers.train_loss(out, batch, h)

    def valid_loss(self, out: Out, batch: Segment) -> Tensor:
        """Mean cross entropy of a token, in nats."""
        return regularizers.valid_loss(out, batch)

    def train_batch(self, step: int) -> Segment:
        """A segment of all streams; after the last comes the first."""
        rows = self.part("train")
        while len(self._positions) <= step:
            before = len(self._positions) - 1
            self._positions.append(after(rows, self._positions[before], self.study.length_of(before)))
        return segment(rows, self._positions[step], self.study.length_of(step))

    def valid_batch(self, number: int) -> Segment:
        """A segment of the held-out text's streams."""
        rows, length = self.part("tuned_on"), self.study.length
        index = number % math.ceil((len(rows) - 1) / length)  # the last row is only a target
        return segment(rows, index * length, length)

    def evaluate(self, model: Any, split: Split) -> dict[str, float]:
        """Mean cross entropy in nats, and perplexity."""
        loss = evaluate(model, self.part(split), self.study.length)
        return {"loss": loss, "perplexity": perplexity(loss)}
