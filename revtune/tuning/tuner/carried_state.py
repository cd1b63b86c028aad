"""Recurrent states that go from batch to batch, one for each level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.trees import mapped
from revtune.tuning.tuner.streamed import StreamedLoss


class CarriedState:
    """A prediction that begins from the state that the last batch of its level ended with.

    It holds no reference to the tuner that it works for. With such a cycle, the tuner and the workers of its loaders
    would live on until the garbage collector runs.

    Args:
        predict: `predict(model, batch, state)` gives the prediction and the next state.
        hypers: those of the model, whose current `Pass` says which pass of a step it is.

    Attributes:
        level: "train" or "valid".
        states: the state of each level, detached; None before its first batch.
    """

    def __init__(self, predict: Callable[..., Any], hypers: Hyperparameters) -> None:
        self._predict, self._hypers, self.level = predict, hypers, "train"
        self.states, self._sizes = dict[str, Any](train=None, valid=None), dict[str, int]()
        self._next: tuple[Any, int] | None = None

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """The prediction; the next state is taken from the pass of a step that is at the current hyperparameters.

        Raises:
            ValueError: `predict` gave no next state, or the state is of another number of examples and does not fit.
        """
        bound, size_before = self._hypers.current, self._sizes.get(self.level)
        try:
            result = self._predict(model, batch, self.states[self.level])
        except (RuntimeError, ValueError) as error:
            if bound is None or size_before in (None, bound.size):
                raise
            or_else = "" if isinstance(self._predict, StreamedLoss) else ", or predict must fit the state to them"
            raise ValueError(
                f"the carried state is of {size_before} examples and does not fit a batch of {bound.size}: batches of "
                f"a level must be of one size{or_else}"
            ) from error
        if not isinstance(result, tuple | list) or len(result) != 2:
            given = f"{len(result)} parts" if isinstance(result, tuple | list) else type(result).__name__
            raise ValueError(f"with carry=True a prediction and the next state are wanted, two parts, got {given}")
        out, state = result
        if bound is not None and (bound.statistics or not bound.training):  # not Delta-STN's two passes for responses
            self._next = mapped(Tensor.detach, state), bound.size
        return out

    def advance(self) -> None:
        """The step is done: the next batch of this level begins where this one ended."""
        assert self._next is not None
        (self.states[self.level], self._sizes[self.level]), self._next = self._next, None

    @property
    def sizes(self) -> dict[str, int]:
        """Of how many examples the states are, by level; of those that there are."""
        return dict(self._sizes)

    def restore(self, states: dict[str, Any], sizes: dict[str, int]) -> None:
        """Go on from states that were saved, of so many examples."""
        self.states, self._sizes = dict(states), dict(sizes)
