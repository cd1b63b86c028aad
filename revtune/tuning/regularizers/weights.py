"""Tuned regularizers that drop weights of a module by one mask a batch: words of an embedding, drop-connect."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from revtune.sequences import drawn_once
from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.noise import BATCH_RATE, drop_mask
from revtune.tuning.regularizers.regularizer import TunedRegularizer
from revtune.tuning.responses.recurrent import ResponseRNN
from revtune.tuning.responses.responding import Responding

_RECURRENT = (nn.RNN, nn.GRU, nn.LSTM, ResponseRNN)
"""Layers whose response layers drop weights themselves; others may be nn.RNNBase's too."""


class TunedEmbeddingDropout(TunedRegularizer):
    """An embedding that drops words at a tuned rate, wherever they stand in a batch.

    Args:
        embedding: an nn.Embedding; if it gets a response, that is dropped with it.
        hypers: where the name is looked up.
        p: the name of a hyperparameter with per="batch", or a rate.

    Raises:
        ValueError: it wraps something else; there is no such hyperparameter, or it is no rate for a batch.

    Example:
        >>> words = TunedEmbeddingDropout(nn.Embedding(9, 4), Hyperparameters(drop=Rate(0.1, per="batch")), "drop")
        >>> words(torch.tensor([[1, 2], [3, 1]])).shape
        torch.Size([2, 2, 4])
    """

    limits = {"p": BATCH_RATE}
    plain = nn.Sequential

    def __init__(self, embedding: nn.Embedding, hypers: Hyperparameters, p: float | str) -> None:
        if not isinstance(embedding, nn.Embedding):
            raise ValueError(f"TunedEmbeddingDropout wraps an nn.Embedding, got {type(embedding).__name__}")
        super().__init__(hypers, p=p)
        self.embedding = embedding

    def forward(self, ids: Tensor) -> Tensor:
        """The rows of the embedding at these ids, in training those of dropped words 0."""
        rows: Tensor = self.embedding(ids)
        if not self.training:
            return rows
        words = (self.embedding.num_embeddings, 1)

        def draw(generator: torch.Generator | None) -> Tensor:
            return drop_mask(words, self.value("p"), rows, generator)

        return self.times(rows, lambda: F.embedding(ids, drawn_once(self, words, rows.device, draw)))


class TunedWeightDrop(TunedRegularizer):
    """A module whose weight loses single entries at a tuned rate: drop-connect.

    What is dropped is the weight that an example's hyperparameters give, W0 and W1 by the same mask.

    Args:
        module: such as nn.Linear or a convolution. Not nn.LSTM, nn.GRU or nn.RNN, whose response layer drops recurrent
            weights itself.
        hypers: where the name is looked up.
        p: the name of a hyperparameter with per="batch", or a rate.
        weight: the name of the weight, such as "0.weight" of an nn.Sequential.

    Raises:
        ValueError: it wraps a recurrent module, or one without such a weight; there is no such hyperparameter, or it is
            no rate for a batch.

    Example:
        >>> layer = TunedWeightDrop(nn.Linear(4, 3), Hyperparameters(drop=Rate(0.5, per="batch")), "drop")
        >>> layer(torch.rand(2, 4)).shape
        torch.Size([2, 3])
    """

    limits = {"p": BATCH_RATE}
    plain = nn.Sequential

    def __init__(self, module: nn.Module, hypers: Hyperparameters, p: float | str, *, weight: str = "weight") -> None:
        if isinstance(module, _RECURRENT):
            kind = type(module).__name__
            raise ValueError(f"TunedWeightDrop cannot wrap {kind}: its response layer drops recurrent weights itself")
        if weight not in dict(module.named_parameters()):
            has = ", ".join(dict(module.named_parameters())) or "none"
            raise ValueError(f"TunedWeightDrop: {type(module).__name__} has no parameter {weight!r}; it has {has}")
        owner = module.get_submodule(weight.rpartition(".")[0])
        if isinstance(owner, _RECURRENT):
            refusal = f"TunedWeightDrop cannot drop {weight!r} of {type(owner).__name__}"
            raise ValueError(f"{refusal}: its response layer drops weights itself")
        super().__init__(hypers, p=p)
        self.module, self._weight = module, weight

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, in training with a mask on its weight."""
        if not self.training:
            return self.module(*args, **kwargs)
        whole = self.module.get_parameter(self._weight)

        def draw(generator: torch.Generator | None) -> Tensor:
            return drop_mask(whole.shape, self.value("p"), whole, generator)

        mask = drawn_once(self, tuple(whole.shape), whole.device, draw)
        dropped = {self._weight: whole * mask}
        path, _, name = self._weight.rpartition(".")
        owner = self.module.get_submodule(path)
        response = getattr(owner, f"response_{name}", None) if isinstance(owner, Responding) else None
        if response is not None:
            dropped[f"{path}.response_{name}" if path else f"response_{name}"] = response * mask
        return functional_call(self.module, dropped, args, kwargs)

    def become_plain(self) -> None:
        """Become an nn.Sequential of the module."""
        del self._weight
        super().become_plain()
