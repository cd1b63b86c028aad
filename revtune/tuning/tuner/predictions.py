"""Predictions that a training loss does not take as Delta-STN changes them: linear in responses, and without a graph.

A linear prediction leaves the range of the network's last operation at some step. A loss that fails there is found at
the first one, by moving the network's own predictions out of their range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from revtune.tuning.hypers.hyperparameters import Values
from revtune.tuning.random_states import random_states, set_random_states
from revtune.tuning.trees import mapped, tensors
from revtune.tuning.tuner.bilevel import LossRefused, TrainLoss

LOSS_DIFFERENTIATES = (
    "the training loss differentiates the network's prediction itself, by torch.autograd.grad or backward, and "
    'Delta-STN\'s linear prediction has no graph that leads back to the network; use method="stn"'
)

POSITIVE = ("Exp", "Softplus")
"""Operations, as autograd names them, whose results are above 0."""

SQUASHING = ("Sigmoid", "Softmax")
"""Operations, as autograd names them, whose results are probabilities."""

UNBOUNDED = ("Addmm", "Convolution", "Addcmul", "NativeLayerNorm", "NativeBatchNorm")
"""Operations, as autograd names them, whose results lie in a range by chance alone."""

WITH_CONSTANT = ("Add", "Sub", "Rsub", "Mul", "Div")
"""Operations, as autograd names them, that move and stretch a range where one of their numbers is constant."""

SHAPING = ("View", "UnsafeView", "Squeeze", "Unsqueeze", "Select", "Slice", "Transpose", "Permute", "T", "Clone")
"""Operations, as autograd names them, that change no number."""


def check_range(train_loss: TrainLoss, out: Any, batch: Any, h: Values) -> None:
    """Refuse probabilities, and other numbers of a range, where the training loss takes no others.

    The loss is tried on predictions that are moved out of their range. Generators of random numbers stay as they are.

    Raises:
        ValueError: it takes predictions as they are, and fails or is not finite where they are moved.
    """
    for y in (y for y in tensors(out) if y.requires_grad and y.numel() and not y.is_complex()):
        for kind, moved in _moved(y):
            states = random_states(y.device)
            told = _failure(train_loss, _with(out, y, moved), batch, h)
            fails_anyway = told is not None and _failure(train_loss, _with(out, y, y), batch, h)
            set_random_states(states, y.device)
            if told and not fails_anyway:
                raise ValueError(_refusal(kind, _operation(y), told))


def _moved(y: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What predictions are by their range, and the same moved out of it; nothing where they have none by their nature.

    All numbers are looked at together, then those that the examples have in one place.
    """
    y, last = y.detach(), _operation(y)
    ends = [y.aminmax(), *([(y.amin(0), y.amax(0))] if y.dim() > 1 and len(y) > 1 else [])]
    for low, high in ends:
        within = (y - low) / (high - low).clamp(min=torch.finfo(y.dtype).tiny)  # from 0 to 1
        for kind, holds, shift in _ranges(last):
            if bool((where := holds(low, high)).any()):
                yield kind, torch.where(where, within + shift, y)


def _ranges(last: str) -> Iterator[tuple[str, Callable[[Tensor, Tensor], Tensor], float]]:
    """What predictions may be: its name, whether numbers from a least to a largest one are, and where they are not."""
    positive = "probabilities" if last in SQUASHING else "positive numbers"
    if not last.startswith(POSITIVE):
        yield "probabilities", lambda low, high: (low >= 0) & (high <= 1), 1.1
        yield positive, lambda low, high: (low >= 0) & (high <= 1), -1.1
    if last not in UNBOUNDED:
        yield positive, lambda low, high: low >= 0, -1.1
        yield "numbers from -1 to 1", lambda low, high: (low >= -1) & (low < 0) & (high > 0) & (high <= 1), 1.1
        yield "numbers from -1 to 1", lambda low, high: (low >= -1) & (low < 0) & (high > 0) & (high <= 1), -2.1
        yield "negative numbers", lambda low, high: high <= 0, 0.1


def _operation(y: Tensor) -> str:
    """The operation that computed a tensor, as autograd names it, before it was shaped or a constant came to it."""
    node: Any = y.grad_fn
    while node is not None:
        name: str = node.name().rstrip("0123456789").removesuffix("Backward")
        given = [before for before, _ in node.next_functions if before is not None]
        if name not in SHAPING and not (name in WITH_CONSTANT and len(given) == 1):
            return name
        node = given[0] if given else None
    return ""


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


def _refusal(kind: str, operation: str, told: str) -> str:
    known = operation in (*SQUASHING, *POSITIVE)
    of, last = (f" of {operation.lower()}", operation.lower()) if known else ("", "its last operation")
    instead = (
        "let the network return logits, with binary_cross_entropy_with_logits or cross_entropy"
        if kind == "probabilities"
        else f"let the network return what {last} is given, and the loss apply it"
    )
    return (
        f"the network returns {kind}{of}, and Delta-STN's prediction, linear in the responses, leaves their range, "
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
            raise LossRefused(LOSS_DIFFERENTIATES)
        return function(*args, **(kwargs or {}))
