"""The language model of `revtune bench tuning`: two layers of nn.LSTM on random words, with six hyperparameters.

The published one (MacKay et al. 2019, section 5.1) but for weight drop, which nn.LSTM has not. The readout is tied to
the embedding, and so stays plain.

Shapes: T steps, B streams, H units, V words.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.hyper import Hyper, Positive, Rate
from revtune.hyperparameters import Hyperparameters
from revtune.penalties import activation_penalty, temporal_penalty
from revtune.regularize import TunedLockedDropout
from revtune.regularize_weights import TunedEmbeddingDropout
from revtune.task import Learning, Space, Split, Study, Task


class Out(NamedTuple):
    """Logits (T, B, V), and outputs of the last layer (T, B, H) before and after dropout."""

    logits: Tensor
    outputs: Tensor
    dropped: Tensor


class LanguageNet(nn.Module):
    """Embedding, two layers of nn.LSTM, tied readout, and dropout between all of them."""

    def __init__(self, hypers: Hyperparameters, tokens: int, width: int) -> None:
        super().__init__()
        self.words = TunedEmbeddingDropout(nn.Embedding(tokens, width), hypers, "embedding_drop")
        self.input_drop = TunedLockedDropout(hypers, "input_drop", batch_dim=1)
        self.rnn = nn.LSTM(width, width, 2, dropout=0.05)
        self.output_drop = TunedLockedDropout(hypers, "output_drop", batch_dim=1)
        self.readout = nn.Linear(width, tokens)
        self.readout.weight = self.words.embedding.weight

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Out, Any]:
        """Predictions for tokens (T, B), and the next state."""
        outputs, state = self.rnn(self.input_drop(self.words(tokens)), state)
        dropped = self.output_drop(outputs)
        return Out(self.readout(dropped), outputs, dropped), state


class RandomWords(Task):
    """Random words to be predicted, the same batch again and again.

    Args:
        width: H.
        tokens: V.
        batch: B.
        steps: T.
    """

    carry, batch_dim = True, 1

    def __init__(self, width: int, tokens: int, batch: int, steps: int) -> None:
        super().__init__(Study(learning=Learning(batch=batch, lr=1.0, momentum=0.0, clip=0.25)))
        self.width, self.tokens = width, tokens
        words = torch.randint(tokens, (steps + 1, batch), generator=torch.Generator().manual_seed(0))
        self.batch = words[:-1], words[1:]

    def hypers(self) -> dict[str, Hyper]:
        """As in `Task`."""
        rates = {name: Rate(0.05) for name in ("input_drop", "dropout", "output_drop")}
        penalties = {name: Positive(0.05) for name in ("activation", "temporal")}
        return {"embedding_drop": Rate(0.05, per="batch"), **rates, **penalties}

    def spaces(self) -> dict[str, Space]:
        """As in `Task`."""
        return {name: Space(0.0, 0.9) for name in self.hypers()}

    def net(self, hypers: Hyperparameters) -> nn.Module:
        """As in `Task`."""
        return LanguageNet(hypers, self.tokens, self.width)

    def predict(self, model: nn.Module, batch: Any, *state: Any) -> Any:
        """As in `Task`."""
        return model(batch[0], *state)

    def train_loss(self, model: nn.Module, out: Any, batch: Any, h: Any) -> Tensor:
        """As in `Task`: cross entropy and penalties on activations."""
        penalty = activation_penalty(out.dropped, h.activation, batch_dim=1)
        return _by_stream(out, batch) + penalty + temporal_penalty(out.outputs, h.temporal, batch_dim=1)

    def valid_loss(self, out: Any, batch: Any) -> Tensor:
        """As in `Task`."""
        return _by_stream(out, batch)

    def train_batch(self, step: int) -> Any:
        """As in `Task`."""
        return self.batch

    def valid_batch(self, number: int) -> Any:
        """As in `Task`."""
        return self.batch

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """As in `Task`."""
        return {"loss": self.valid_loss(self.predict(model, self.batch)[0], self.batch).mean().item()}


def _by_stream(out: Out, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy of each stream, (B,)."""
    losses = F.cross_entropy(out.logits.flatten(0, 1), batch[1].flatten(), reduction="none")
    return losses.view(batch[1].shape).mean(0)
