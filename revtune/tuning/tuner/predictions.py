"""Predictions that a training loss does not take as Delta-STN changes them: linear in responses, and without a graph.

A linear prediction leaves the range of the network's last operation at some step. A loss that fails there is found at
the first one, by moving the network's own predictions out of their range.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from revtune.tuning.hypers.hyperparameters import Values
from revtune.tuning.random_states import random_states, set_random_states
from revtune.tuning.trees import mapped, tensors
from revtune.tuning.tuner.bilevel import TrainLoss

LOSS_DIFFERENTIATES = (
    "the training loss differentiates the network's prediction itself, by torch.autograd.grad or backward, and "
    'Delta-STN\'s linear prediction has no graph that leads back to the network; use method="stn"'
)

POSITIVE = ("Exp", "Softplus")
"""Operations, as autograd names them, whose results are above 0."""

SHAPING = ("View", "UnsafeView", "Squeeze", "Unsqueeze", "Select", "Slice", "Transpose", "Permute", "T", "Clone")
"""Operations, as autograd names them, that change no number."""


def check_range(train_loss: TrainLoss, out: Any, batch: Any, h: Values) -> None:
    """Refuse probabilities, and numbers above 0, where the training loss takes no others.

    The loss is tried on predictions that are moved out of their range. Generators of random numbers stay as they are.

    Raises:
        ValueError: it takes predictions as they are, and fails or is not finite where they are moved.
    """
    for y in (y for y in tensors(out) if y.requires_grad and y.numel()):
        for moved in _moved(y):
            states = random_states(y.device)
            told = _failure(train_loss, _with(out, y, moved), batch, h)
            fails_anyway = told is not None and _failure(train_loss, _with(out, y, y), batch, h)
            set_random_states(states, y.device)
            if told and not fails_anyway:
                raise ValueError(_refusal(_operation(y), told))


def _moved(y: Tensor) -> Iterator[Tensor]:
    """Predictions out of the range that they have by their nature; none where they have no such range."""
    y, last = y.detach(), _operation(y)
    low, high = y.aminmax()
    if last.startswith(POSITIVE) or (low >= 0 and high <= 1):
        yield y - high - 0.1
    if low >= 0 and high <= 1 and not last.startswith(POSITIVE):
        yield y - low + 1.1


def _operation(y: Tensor) -> str:
    """The operation that computed a tensor, as autograd names it; "" if there is none."""
    node: Any = y.grad_fn
    while node is not None and node.name().rstrip("0123456789").removesuffix("Backward") in SHAPING:
        node = node.next_functions[0][0]
    return "" if node is None else node.name().rstrip("0123456789").removesuffix("Backward")


def _with(out: Any, y: Tensor, instead: Tensor) -> Any:
    """A prediction without its graph, one tensor of it replaced."""
    return mapped(lambda x: (instead if x is y else x).detach(), out)


def _failure(train_loss: TrainLoss, out: Any, batch: Any, h: Values) -> str | None:
    """What the loss says of a prediction; None if it takes it."""
    try:
        with _ProbabilitiesChecked():
            losses = train_loss(out, batch, h)
    except (RuntimeError, ValueError) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None if bool(torch.as_tensor(losses).isfinite().all()) else "it is not finite"


def _refusal(operation: str, told: str) -> str:
    gives = "positive numbers" if operation.startswith(POSITIVE) else "probabilities"
    of = f" of {operation.lower()}" if operation in ("Sigmoid", "Softmax", *POSITIVE) else ""
    instead = (
        f"let the network return what {operation.lower()} is given, and the loss apply it"
        if operation.startswith(POSITIVE)
        else "let the network return logits, with binary_cross_entropy_with_logits or cross_entropy"
    )
    return (
        f"the network returns {gives}{of}, and Delta-STN's prediction, linear in the responses, leaves their range, "
        f'where the training loss fails ({told}): {instead}; or use method="stn"'
    )


class _ProbabilitiesChecked(TorchFunctionMode):
    """Raises before torch does: on a GPU its own check would end the process."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What the function gives."""
        kwargs = kwargs or {}
        if function is F.binary_cross_entropy:
            given = args[0] if args else kwargs["input"]
            if not bool(((given >= 0) & (given <= 1)).all()):
                raise ValueError("binary_cross_entropy takes numbers from 0 to 1")
        return function(*args, **kwargs)


class GradientsRefused(TorchFunctionMode):
    """Refuses to differentiate the linear prediction, from which no graph leads back to the network."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What the function gives."""
        if function in (torch.autograd.grad, torch.autograd.backward, Tensor.backward):
            raise ValueError(LOSS_DIFFERENTIATES)
        return function(*args, **(kwargs or {}))
