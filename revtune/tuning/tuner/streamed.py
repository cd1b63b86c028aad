"""Predictions that are streamed: a function says what is streamed, and the loss comes chunk by chunk.

This wing streams nothing itself. Whoever does enters here how.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from revtune.tuning.hypers.hyperparameters import Hyperparameters, Pass, Values
from revtune.tuning.responses.linearized import ResponseRecord
from revtune.tuning.responses.responding import Responding

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
            TypeError: the function gave no arguments by name, or others than the streamed loss takes.
            ValueError: it read h, which is None on held-out data; it gave a net that is no part of the model, or a sum;
                while the tuner carries a state, a bidirectional net, or a state other than None, which begins anew; or
                Delta-STN would lose how what it computes answers to hyperparameters.
        """
        bound = self._hypers.current
        assert bound is not None
        given = self._given(model, batch, bound)
        arguments = {"state": state, **given} if self._carry else given
        following = None if bound.rows is None else bound.rows.following
        # a stream says itself whose the rows of its chunks are
        with contextlib.nullcontext() if following is None else following.pause():
            if bound.record is None:
                loss, last = STREAMS["loss"](**arguments)
            else:
                loss, last = STREAMS["linear"](self._hypers, **arguments)
        return (loss, last) if self._carry else loss

    def _given(self, model: nn.Module, batch: Any, bound: Pass) -> dict[str, Any]:
        """What the function gives in a pass, checked."""
        h = None if bound.raw is None else Values(self._hypers, bound.raw)
        running = bound if bound.record is None else dataclasses.replace(bound, record=_Outside())
        try:
            with self._hypers.bound(running):
                given = self._stream(model, batch, h)
        except AttributeError as error:
            if h is None and str(error).startswith("'NoneType' object"):
                raise ValueError(
                    "stream must give the loss without regularizers on held-out data, where h is None, and it read "
                    f"{error.name!r} of None"
                ) from error
            raise
        if not isinstance(given, Mapping):
            raise TypeError(f"stream must return the arguments of rewind_loss, a dict, got {type(given).__name__}")
        _check_names(given)
        net = given["rnn"]
        if isinstance(net, nn.Module) and all(net is not module for module in model.modules()):
            raise ValueError(
                "stream must give an rnn that is a module of the network, whose weights alone are trained, got a "
                f"{type(net).__name__} that is not"
            )
        if given.get("reduction") == "sum":
            raise ValueError(
                'stream: reduction must be "mean" or "rows", as a tuner takes mean losses of both levels, got "sum"; '
                "normalizer= says what the mean divides by"
            )
        if self._carry and getattr(net, "bidirectional", False):
            raise ValueError(
                "carry=True carries a state from batch to batch, where a bidirectional net cannot go on: its backward "
                "direction begins behind the last step; use carry=False"
            )
        if self._carry and given.get("state") is not None:
            raise ValueError("stream gave a state, which carry=True carries from batch to batch by itself")
        # regularizers are off on held-out data, also those whose coefficients are not tuned
        return {name: value for name, value in given.items() if h is not None or name != "penalties"}


class _Outside(ResponseRecord):
    """What layers are bound to that run in the function itself, before Delta-STN's streamed pass: nothing is kept."""

    def __init__(self) -> None:
        super().__init__(0)

    def keep(self, owner: nn.Module, *entry: Any) -> None:
        """Refuse a layer that responds; what draws is as ever.

        Raises:
            ValueError: names it.
        """
        if isinstance(owner, Responding) and torch.is_grad_enabled():
            raise ValueError(
                f"stream runs {owner._name}, which responds to hyperparameters, outside of what is streamed, where "
                'Delta-STN does not follow its response: let encode or the readout run it, or use method="stn"; what '
                "has no part in gradients runs under torch.no_grad()"
            )


def _check_names(given: Mapping[str, Any]) -> None:
    """Refuse arguments that the streamed loss does not take, and others that it lacks.

    Raises:
        TypeError: names them.
    """
    takes = inspect.signature(STREAMS["loss"]).parameters
    unknown = [str(name) for name in given if name not in takes]
    lacks = [name for name, takes_it in takes.items() if takes_it.default is inspect.Parameter.empty]
    lacks = [name for name in lacks if name not in given]
    if unknown or lacks:
        wrong = f"it gave {', '.join(unknown)}" if unknown else f"it lacks {', '.join(lacks)}"
        raise TypeError(f"stream must return arguments of rewind_loss ({', '.join(takes)}), but {wrong}")


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
