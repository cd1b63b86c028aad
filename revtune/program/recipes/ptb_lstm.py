"""Penn Treebank: a language model tunes five dropouts and two penalties; --size paper for the whole text.

The text, the losses and the regularizers are those of `ptb` (`language.task`). The settings, the network of torch's
layers, which has one locked dropout between them, and the names of hyperparameters are those of MacKay et al. 2019, and
of runs that were begun before `ptb` tuned.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

import revtune as rt
from revtune.program.data.text import streams
from revtune.program.data.text_sources import Text
from revtune.program.language.config import Net
from revtune.program.language.model import TIED_INIT, Out, RewindingLanguageModel, follow_quickly
from revtune.program.language.regularizers import PENALTIES
from revtune.program.language.task import LanguageTask
from revtune.program.layers import Model
from revtune.program.tasks.task import Learning, Size, Study
from revtune.program.tuning import Tuning
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.hypers.kinds import Hyper, Positive, Rate
from revtune.tuning.regularizers.dropouts import TunedLockedDropout
from revtune.tuning.regularizers.weights import TunedEmbeddingDropout

kind = "tuned"

START = 0.05
"""Of all hyperparameters (MacKay et al. 2019, section 5.1)."""

DROPOUTS = ("input_drop", "hidden_drop", "output_drop")

BATCH_DROPOUTS = ("embedding_drop", "weight_drop")
"""Those of weights, of which a batch has one mask."""

RATES = ("rnn.input_dropout", "rnn.dropout", "rnn.output_dropout", "words.dropout", "rnn.weight_drop")
"""The rates of a reversible network in the order of those above; that between layers has a mask a step."""

BATCH_RATES = ("words.dropout", "rnn.weight_drop")

EPOCH = 29
"""Updates of a pass over the small study's text."""


# warmup: a pass over the paper's training text
PAPER = Tuning(warmup=332, tune_scales=False, scale=1.0)


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

    @property
    def text(self) -> Text:
        """Which text is read."""
        return Text(source="ptb", unit="word", data=self.data, words=self.words, max_words=self.vocabulary)

    @property
    def net(self) -> Net:
        """The network's form."""
        return Net(model=self.model, embedding=self.width, hidden=self.width, layers=2, tie=True)

    def length_of(self, step: int) -> int:
        """Words of a stream in a training step."""
        return self.length


def study(size: Size = "small") -> WordStudy:
    """20,000 words and 64 units, or the settings of MacKay et al. 2019, section 5.1.

    A few words are soon learnt by heart, so that a plain run is over in seconds and regularizers matter. Momentum takes
    the place of the paper's learning rate of 30, at which held-out loss jumps by more than regularizers change it.
    """
    if size == "paper":
        learning = Learning(
            steps=33_200, batch=40, lr=30.0, momentum=0.0, schedule="plateau", clip=0.25, valid_every=332
        )
        return WordStudy(words=None, length=70, width=650, learning=learning, stn=PAPER, delta=PAPER)
    learning = Learning(steps=2_400, batch=20, lr=2.0, clip=0.25, valid_every=EPOCH)
    delta = Tuning(warmup=5 * EPOCH, hyper_lr=0.02, tune_scales=False)
    stn = dataclasses.replace(delta, hyper_lr=0.01, response_lr=0.3)
    return WordStudy(words=20_000, vocabulary=2_000, width=64, learning=learning, stn=stn, delta=delta)


class WordNet(nn.Module):
    """Embedding, two layers of nn.LSTM or nn.GRU and a tied readout, with locked dropout between all of them.

    The readout stays plain: its weight is the embedding's. Recurrent weights are dropped at the rate `weight_drop`.

    Args:
        hypers: what the dropouts read; a dropout whose hyperparameter is not among them drops nothing.
        words: V.
        width: H, of embedding and layers.
        kind: of the layers, nn.LSTM or nn.GRU.
    """

    def __init__(self, hypers: Hyperparameters, words: int, width: int, kind: Any = nn.LSTM) -> None:
        super().__init__()
        rates = {name: name if name in hypers.names else 0.0 for name in (*DROPOUTS, *BATCH_DROPOUTS)}
        self.words = TunedEmbeddingDropout(nn.Embedding(words, width), hypers, rates["embedding_drop"])
        self.input_drop, self.hidden_drop, self.output_drop = (
            TunedLockedDropout(hypers, rates[name], batch_dim=1) for name in DROPOUTS
        )
        self.lower, self.upper = kind(width, width), kind(width, width)
        self.readout = nn.Linear(width, words)
        self.readout.weight = nn.init.uniform_(self.words.embedding.weight, -TIED_INIT, TIED_INIT)
        nn.init.zeros_(self.readout.bias)

    def forward(self, words: Tensor, state: Any = None) -> tuple[Out, Any]:
        """Predictions after words (T, B), and the next state."""
        lower, upper = state or (None, None)
        x, lower = self.lower(self.input_drop(self.words(words)), lower)
        outputs, upper = self.upper(self.hidden_drop(x), upper)
        dropped = self.output_drop(outputs)
        return Out(self.readout(dropped), outputs, dropped), (lower, upper)

    def outputs(self, words: Tensor, state: Any) -> tuple[Out, Any]:
        """The same, by the name that all models of torch's layers have for it."""
        outputs: tuple[Out, Any] = self(words, state)
        return outputs

    def loss(self, inputs: Tensor, targets: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Mean loss in nats a word of inputs and targets (T, B), and the next state."""
        out, state = self(inputs, state)
        return F.cross_entropy(out.logits.flatten(0, 1), targets.flatten()), state


class ReversibleWordNet(RewindingLanguageModel):
    """Embedding, two reversible layers and a tied readout; their rates are arguments of their own.

    Args:
        words: V.
        width: H, of embedding and layers.
        kind: of the layers.
    """

    def __init__(self, words: int, width: int, kind: type[rt.RevGRU] | type[rt.RevLSTM]) -> None:
        nn.Module.__init__(self)
        self.words, self.rnn = rt.Embedding(words, width), kind(width, width, num_layers=2)
        self.readout = rt.LinearCrossEntropy(width, words, tie=self.words)
        nn.init.uniform_(self.words.weight, -TIED_INIT, TIED_INIT)
        if isinstance(self.rnn, rt.RevLSTM):
            follow_quickly(self.rnn)

    @property
    def encode(self) -> rt.Embedding:  # type: ignore[override]
        """The embedding, by the name that all language models have for it."""
        return self.words


class PtbLstm(LanguageTask):
    """Dropout of inputs, between layers and of outputs; of words and recurrent weights; penalties on activations."""

    study: WordStudy

    def cut(self, name: str) -> Tensor:
        """A part of the text cut into as many streams as are learnt from."""
        part = "valid" if name == "tuned_on" else name
        return streams(getattr(self.corpus, part), self.study.learning.batch, name=part)

    def hypers(self) -> dict[str, Hyper]:
        """Five rates and the weights of two penalties."""
        names, of_batch = (RATES, BATCH_RATES) if self.streams else ((*DROPOUTS, *BATCH_DROPOUTS), BATCH_DROPOUTS)
        rates = {name: Rate(START, per="batch" if name in of_batch else "example") for name in names}
        return {**rates, **{name: Positive(START) for name in PENALTIES}}

    def build(self, hypers: Hyperparameters | None, words: int) -> nn.Module:
        """A network of the study's layers and width."""
        if self.streams:
            kind = rt.RevLSTM if self.study.model == "revlstm" else rt.RevGRU
            return ReversibleWordNet(words, self.study.width, kind)
        assert hypers is not None
        return WordNet(hypers, words, self.study.width, nn.LSTM if self.study.model == "lstm" else nn.GRU)


task = PtbLstm
