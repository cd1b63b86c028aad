"""Predictions that are streamed: a function says what is streamed, and the loss comes chunk by chunk.

This wing streams nothing itself. Whoever does enters here how.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from revtune.tuning.hypers.hyperparameters import Hyperparameters, Values

STREAMS: dict[str, Callable[..., tuple[Tensor, Any]]] = {}
"""What streams a loss: "loss" in ordinary passes, and "linear", which is given the hyperparameters too, in Delta-STN's
pass for responses. Each takes what a user's function says and gives the loss and the last state."""

Stream = Callable[[nn.Module, Any, Values | None], Mapping[str, Any]]


class StreamedLoss:
    """The prediction of a problem that is streamed: its loss.

    Args:
        stream: `stream(model, batch, h)` gives the arguments of the streamed loss by name.
        hypers: those of the model, whose pass says which loss it is.
        carry: whether a state goes from batch to batch.
    """

    def __init__(self, stream: Stream, hypers: Hyperparameters, carry: bool) -> None:
        self._stream, self._hypers, self._carry = stream, hypers, carry

    def __call__(self, model: nn.Module, batch: Any, state: Any = None) -> Any:
        """The loss; with `carry` the next state too.

        Raises:
            TypeError: the function gave no arguments by name.
            ValueError: it gave a state other than None, which begins anew, while the tuner carries one.
        """
        bound = self._hypers.current
        assert bound is not None
        given = self._stream(model, batch, None if bound.raw is None else Values(self._hypers, bound.raw))
        if not isinstance(given, Mapping):
            raise TypeError(f"stream must return the arguments of rewind_loss, a dict, got {type(given).__name__}")
        if self._carry and given.get("state") is not None:
            raise ValueError("stream gave a state, which carry=True carries from batch to batch by itself")
        arguments = {"state": state, **given} if self._carry else dict(given)
        following = None if bound.rows is None else bound.rows.following
        # a stream says itself whose the rows of its chunks are
        with contextlib.nullcontext() if following is None else following.pause():
            if bound.record is None:
                loss, last = STREAMS["loss"](**arguments)
            else:
                loss, last = STREAMS["linear"](self._hypers, **arguments)
        return (loss, last) if self._carry else loss


def itself(out: Tensor, *others: Any) -> Tensor:
    """The loss of a prediction that is a loss."""
    return out


def check_alone(**others: Any) -> None:
    """Refuse what a stream stands in the place of.

    Raises:
        ValueError: names it.
    """
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"{name} has no part in a stream, whose prediction is the loss: give stream or {name}")
