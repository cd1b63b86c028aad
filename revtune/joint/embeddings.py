"""`revtune.Embedding` with a response, which drops words at a tuned rate, one for a batch and its sequences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revtune.reversible.streams.dropout import Embedding
from revtune.sequences import drawn_once
from revtune.tuning.hypers.ranges import Range
from revtune.tuning.noise import BATCH_RATE, drop_mask
from revtune.tuning.responses.layers import ResponseEmbedding


class ResponseDroppedEmbedding(ResponseEmbedding, Embedding):
    """`revtune.Embedding` with a response."""

    RATES: dict[str, Range] = {"dropout": BATCH_RATE}
    """The argument that may be tuned. A word is one for all rows of a batch, and so is its mask."""

    plain = Embedding
    _rate: Callable[[], Tensor | float] | None = None

    @classmethod
    def rates(cls, module: nn.Module, *, named: bool) -> dict[str, float]:
        """The rate of a plain embedding."""
        assert isinstance(module, Embedding)
        return {"dropout": module.dropout}

    @classmethod
    def put_rate(cls, module: nn.Module, rate: str, value: float) -> None:
        """Set the rate of a plain embedding."""
        assert isinstance(module, Embedding) and rate == "dropout"
        module.dropout = value

    def rates_tuned(self) -> dict[str, str]:
        """The hyperparameter that the rate is read from, if one is."""
        return {"dropout": self._rate.args[0]} if isinstance(self._rate, partial) else {}

    def tune(self, rate: str, hyper: str) -> None:
        """Have the rate read from a hyperparameter."""
        self._rate = partial(self.hypers.__getitem__, hyper)

    def become_plain(self) -> None:
        """Become the plain embedding again, with words dropped at the rate that they are now."""
        if self._rate is not None:
            self.put_rate(self, "dropout", float(self._rate()))
        self.__dict__.pop("_rate", None)
        super().become_plain()

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: the rate by the name of its hyperparameter."""
        state = super().__getstate__()
        return {**state, "_rate": self._rate.args[0]} if isinstance(self._rate, partial) else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up what `__getstate__` gave."""
        (hypers,), hyper = state["_hypers"], state.get("_rate")
        read = {"_rate": partial(hypers.__getitem__, hyper)} if isinstance(hyper, str) else {}
        super().__setstate__({**state, **read})

    def forward(self, x: Tensor) -> Tensor:
        """The rows of these numbers, at each example's hyperparameters, under the sequence's mask of words."""
        rows: Tensor = ResponseEmbedding.forward(self, x)
        rate = (self.dropout if self._rate is None else self._rate()) if self.training else 0.0
        if not isinstance(rate, Tensor) and not rate:
            return rows
        shape, weight = (self.num_embeddings, 1), self.weight

        def draw(generator: torch.Generator | None) -> Tensor:
            return drop_mask(shape, rate, weight.detach(), generator)

        return rows * F.embedding(x, drawn_once(self, shape, weight.device, draw))
