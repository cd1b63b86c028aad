"""Recurrent states that go from batch to batch, one for each level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.trees import mapped


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
        self._predict, self._hypers, self.level = predict, hypers, "train"
        self.states, self._sizes = dict[str, Any](train=None, valid=None), dict[str, int]()
        self._next: tuple[Any, int] | None = None

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """The prediction; the first pass of a step, at the current hyperparameters, tells the next state.

        Raises:
            ValueError: there is no next state, or the state is of another number of examples and does not fit.
        """
        bound, before = self._hypers.current, self._sizes.get(self.level)
        try:
            found = self._predict(model, batch, self.states[self.level])
        except (RuntimeError, ValueError) as error:
            if bound is None or before in (None, bound.size):
                raise
            raise ValueError(
                f"the carried state is of {before} examples and does not fit a batch of {bound.size}: batches of a "
                "level must be of one size, or predict must fit the state to them"
            ) from error
        if not isinstance(found, tuple | list) or len(found) != 2:
            kind = f"{len(found)} parts" if isinstance(found, tuple | list) else type(found).__name__
            raise ValueError(f"with carry=True a prediction and the next state are wanted, two parts, got {kind}")
        out, state = found
        if bound is not None and (bound.statistics or not bound.training):
            self._next = mapped(Tensor.detach, state), bound.size
        return out

    def go_on(self) -> None:
        """The step has been done: the next batch of this level begins where it ended."""
        assert self._next is not None
        (self.states[self.level], self._sizes[self.level]), self._next = self._next, None

    def stand(self, states: dict[str, Any]) -> None:
        """Go on from states that were saved."""
        self.states, self._sizes = dict(states), {}
