"""Translation as a task: sentence pairs in batches of like length, a translator, and how well it does."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.program.data.buckets import Batch, batch, by_length, order
from revtune.program.data.moses import Language
from revtune.program.data.named_sets import Split
from revtune.program.data.pair_sources import PairSource, PairUnit, texts
from revtune.program.data.pairs import Lexicon, Pairs, pairs, vocabularies
from revtune.program.data.readings import BY_LINES, Reading
from revtune.program.layers import REVERSIBLE, Model
from revtune.program.runs.schedule import FALL
from revtune.program.tasks.task import Learning, Schedule, perplexity
from revtune.program.translation.translator import Net, Translator, build, rates_of
from revtune.program.tuning import STN, Tune, Tuned, Tuning
from revtune.reversible.arguments import running
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Hyper, Rate

PAPERS_RATES: dict[Model, float] = {"gru": 0.2, "revgru": 0.2, "revlstm": 0.5, "lstm": 1.0}
"""Learning rates of SGD (MacKay et al. 2018, on Multi30K)."""

MOST_TOKENS: dict[PairUnit, int] = {"word": 50_000, "subword": 8_000}
"""Of each language's vocabulary, by default."""

PAPERS_EPOCH = 454
"""Updates of a pass over Multi30K, 64 pairs each."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """Which sentence pairs."""

    name: Annotated[PairSource, tyro.conf.Fixed] = "multi30k"
    source: Language = "en"
    """Language to translate from."""
    target: Language = "de"
    """Language to translate to."""
    unit: PairUnit = "word"
    """Words as the files have them, or sub-words, learnt from raw text, for iwslt14 from its tokenized files."""
    vocabulary: int = MOST_TOKENS["word"]
    """Most words, or sub-words, of each language; by default 50,000 words or 8,000 sub-words."""
    fewest: int = 2
    """How often a word must come up to be one of the vocabulary, or two sub-words together to be joined."""
    longest: int = 50
    """Words, or sub-words, of the longest sentence that is learnt, or validated on."""
    data: Path | None = None
    """Folder with data sets by name; default: the environment's REVTUNE_DATA, then the hub."""


@dataclass(frozen=True, kw_only=True)
class TranslationLearning(Learning):
    """How a translator learns."""

    schedule: Schedule = "constant"
    """cosine falls to a twentieth over the run; plateau divides by --fall when validation stops improving."""
    patience: int = 5
    """Validations in a row without a better one before the learning rate falls; a run never ends early."""
    clip: float | None = None
    """Largest norm of the gradient."""
    fall: float = FALL
    """What a plateau divides the learning rate by."""


@dataclass(frozen=True, kw_only=True)
class TranslationStudy:
    """The settings of a translation run."""

    text: Annotated[Text, tyro.conf.arg(name="")] = field(default_factory=Text)
    net: Annotated[Net, tyro.conf.arg(name="")] = field(default_factory=Net)
    learning: Annotated[TranslationLearning, tyro.conf.arg(name="")] = field(default_factory=TranslationLearning)
    seed: int = 1
    """Seed of weights, order and masks."""
    threads: int = 1
    """Threads of torch."""
    tune: Tune = "off"
    """Whether dropout rates are tuned on validation text while weights learn, by STN, or left where they are; what an
    encoder hands to attention Delta-STN does not follow."""
    tuned_from: float = 0.05
    """Where tuned rates start that are 0, as no gradient reaches them there."""
    stn: Tuning = STN

    def tuning(self, method: Tuned) -> Tuning:
        """The settings of a method that tunes; of one that cannot tune a translator, those of the other."""
        return self.stn


class TranslationTask:
    """The sentence pairs of a study, in batches.

    Args:
        study: its settings.
        lexicons: the vocabularies of source and target; by default those of the training text.
        reading: how files are read.

    Attributes:
        pairs: vocabularies and splits.
        form: what the text looks like.
        note: what to know of it, if anything.
        measure: the name of the figure that people quote.
        carry, batch_dim: as of `Task`.
    """

    measure = "perplexity"
    carry, batch_dim = False, 1

    def __init__(
        self, study: TranslationStudy, lexicons: tuple[Lexicon, Lexicon] | None = None, reading: Reading = BY_LINES
    ) -> None:
        text = study.text
        files = texts(text.name, text.unit, text.source, text.target, text.data, reading)
        if lexicons is None:
            lexicons = vocabularies(files.splits["train"], text.unit, most=text.vocabulary, fewest=text.fewest)
        self.study, self.form, self.note = study, files.form, files.note
        self.pairs: Pairs = pairs(files.splits, lexicons, longest=text.longest)
        self._orders: dict[Split, tuple[int, list[list[int]]]] = {}  # of the passes that were asked for last

    def digest(self) -> str:
        """What tells the data from others."""
        return self.pairs.digest()

    def hypers(self) -> dict[str, Hyper]:
        """A rate for each dropout, by its module, where it starts."""
        return {name: Rate(rate or self.study.tuned_from) for name, rate in rates_of(self.study.net).items()}

    def net(self, hypers: Hyperparameters | None = None) -> Translator:
        """A fresh translator, its weights by the study's seed; none of its modules reads hyperparameters by itself."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.study.seed)
            return build(self.study.net, len(self.pairs.source), len(self.pairs.target))

    @property
    def streams(self) -> bool:
        """Whether its layers rewind."""
        return self.study.net.model in REVERSIBLE

    def stream(self, model: Any, batch: Batch, h: Any) -> dict[str, Any]:
        """What a reversible translator's loss is streamed from."""
        streamed: dict[str, Any] = model.streamed(batch, *model.encoded(batch.source, batch.source_lengths))
        return streamed

    def predict(self, model: Any, batch: Batch) -> Tensor:
        """Scores of a translator of torch's layers."""
        logits: Tensor = model.logits(batch)
        return logits

    def train_loss(self, model: Any, out: Tensor, batch: Batch, h: Any) -> Tensor:
        """Losses of the rows (B,), whose mean is that of a word, in nats."""
        losses = F.cross_entropy(out.flatten(0, 1), batch.targets.flatten(), reduction="none").view(batch.targets.shape)
        live = running(batch.lengths, 0, len(losses))
        return torch.where(live, losses, 0.0).sum(0) * (len(batch.lengths) / int(batch.lengths.sum()))

    def valid_loss(self, out: Tensor, batch: Batch) -> Tensor:
        """The same, as no penalty belongs to a training loss."""
        return self.train_loss(None, out, batch, None)

    @property
    def epoch(self) -> int:
        """Updates of a pass over the training pairs."""
        return self._epoch("train")

    def _epoch(self, split: Split) -> int:
        return math.ceil(len(self.pairs.splits[split].pairs) / self.study.learning.batch)

    def train_batch(self, step: int) -> Batch:
        """The batch of an update, from 0 on: a function of its number and the seed."""
        return self._batch("train", step)

    def valid_batch(self, number: int) -> Batch:
        """The batch of a step on validation text, likewise."""
        return self._batch("valid", number)

    def _batch(self, split: Split, number: int) -> Batch:
        epoch, position = divmod(number, self._epoch(split))
        pairs = self.pairs.splits[split].pairs
        if split not in self._orders or self._orders[split][0] != epoch:
            self._orders[split] = epoch, order(pairs, self.study.learning.batch, self.study.seed, epoch)
        return batch([pairs[number] for number in self._orders[split][1][position]], self.pairs.target.start)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Mean loss in nats a word, the ends counted, and its exponential, no more than e^99."""
        assert isinstance(model, Translator)
        pairs, total, words = self.pairs.splits[split].pairs, 0.0, 0
        for numbers in by_length(pairs, self.study.learning.batch):
            part = batch([pairs[number] for number in numbers], self.pairs.target.start)
            total += model.loss(part).item()
            words += int(part.lengths.sum())
        return {"loss": total / words, "perplexity": perplexity(total / words)}


def recipe(
    name: PairSource, *, full: bool, layers: int = 1, hidden: int = 300, sliced: int = 20, model: Model = "revgru",
    unit: PairUnit = "word",
) -> TranslationStudy:  # fmt: skip
    """The settings of a run: by Adam, half an hour of one core for one layer; in full the papers' settings.

    These learn by SGD for 80 epochs of Multi30K. The learning rate depends on the model, and is halved when held-out
    perplexity is no better.
    """
    base = TranslationStudy(
        text=Text(name=name, unit=unit, vocabulary=MOST_TOKENS[unit]),
        net=Net(model=model, layers=layers, hidden=hidden, embedding=hidden, attend=f"emb+slice:{sliced}"),
    )
    adam = TranslationLearning(
        steps=6_000, batch=64, optimizer="adam", lr=2e-3, schedule="cosine", clip=1.0, valid_every=227
    )
    if not full:
        return replace(base, learning=adam)
    sgd = TranslationLearning(
        steps=80 * PAPERS_EPOCH, batch=64, optimizer="sgd", lr=PAPERS_RATES[model], momentum=0.0, schedule="plateau",
        fall=2.0, patience=1, clip=5.0, valid_every=PAPERS_EPOCH,
    )  # fmt: skip
    return replace(base, text=replace(base.text, fewest=1), learning=sgd)
