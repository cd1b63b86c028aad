"""Recurrent states that go from batch to batch, one for each level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from revtune.hyperparameters import Hyperparameters
from revtune.trees import mapped


class Carried:
    """A prediction that begins from the state that the last batch of its level ended with.

    It knows nothing of the tuner it works for: a cycle of references would leave the tuner, and the workers of its
    loaders, to the garbage collector.

    Args:
        predict: `predict(model, batch, state)` gives the prediction and the next state.
        hypers: tell in which pass of a step it is.

    Attributes:
        level: "train" or "valid".
        states: of each level, detached; None before its first batch.
    """

    def __init__(self, predict: Callable[..., Any], hypers: Hyperparameters) -> None:
        self._predict, self._hypers = predict, hypers
        self.level, self.states = "train", dict[str, Any](train=None, valid=None)
        self._next: Any = None

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """The prediction; the first pass of a step, at the current hyperparameters, tells the next state."""
        out, state = self._predict(model, batch, self.states[self.level])
        bound = self._hypers.current
        if bound is not None and (bound.statistics or not bound.training):
            self._next = mapped(Tensor.detach, state)
        return out

    def go_on(self) -> None:
        """The step has been done: the next batch of this level begins where it ended."""
        self.states[self.level], self._next = self._next, None
