"""What the mean loss of a stream divides by, and readouts of which that cannot be told.

A readout sums its positions' losses. Where it leaves positions out, or weighs them, its own mean would divide by what
counts, and `rewind_loss` sees no more than the sum. So a trial of the readout notes what torch is told to leave out or
to weigh. Masks that a readout multiplies by, and targets that it computes, are its own: nobody sees them later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from inspect import signature
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Normalizer = float | Callable[[Tensor], float]

_WEIGHED = frozenset({F.mse_loss, F.l1_loss, F.huber_loss})
"""Losses of numbers whose own mean divides by the sum of weights, where those are given."""


@dataclass
class Counted:
    """What a readout's losses were told to count.

    Attributes:
        ignored: targets that they leave out.
        computed: those of them that a readout computed in a trial: it was given other targets, and left some out.
        weighed: what is weighed, "classes" or "positions"; "" for nothing.
    """

    ignored: set[int] = field(default_factory=set)
    computed: set[int] = field(default_factory=set)
    weighed: str = ""

    def note(self, targets: Tensor, ignore_index: int | None, class_weights: Tensor | None) -> None:
        """Note a loss of classes."""
        if ignore_index is not None:
            self.ignored.add(ignore_index)
            if bool((targets == ignore_index).any()):
                self.computed.add(ignore_index)
        if class_weights is not None and bool((class_weights != 1).any()):
            self.weighed = "classes"

    def given(self, targets: Tensor) -> None:
        """Note, after a trial, what its targets were: those among them need not have been computed."""
        self.computed = {index for index in self.computed if not bool((targets == index).any())}

    def refuse(self, targets: Tensor) -> None:
        """Refuse to divide by the number of these targets, (N, ...), where not all of them count alike.

        Raises:
            ValueError: says what to write.
        """
        for index in sorted(self.ignored):
            if index in self.computed or bool((targets == index).any()):
                raise ValueError(
                    f"rewind_loss: readout leaves out targets that are {index} (ignore_index), and what its mean "
                    f"divides by is not known; write normalizer=lambda targets: int((targets != {index}).sum()) for "
                    "the targets that count, or normalizer=len for all; a LinearCrossEntropy that is itself the "
                    "readout counts its own"
                )
        if self.weighed:
            count = "weight[targets].sum()" if self.weighed == "classes" else "weight.sum()"
            raise ValueError(
                f"rewind_loss: readout weighs its {self.weighed} (weight=), and what its mean divides by is not known; "
                f"write normalizer= as a function of targets, such as lambda targets: float({count}), or "
                "normalizer=len for the number of positions; a LinearCrossEntropy that is itself the readout counts "
                "its own"
            )


_noting: ContextVar[Counted | None] = ContextVar("revtune_counted", default=None)


class _Weighed(TorchFunctionMode):
    """Within this block weights of positions are noted, which no single operator of torch's is told of."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _WEIGHED and (noting := _noting.get()) is not None:
            weight = signature(func).bind(*args, **(kwargs or {})).arguments.get("weight")
            noting.weighed = noting.weighed or ("" if weight is None else "positions")
        return func(*args, **(kwargs or {}))


@contextmanager
def noted() -> Iterator[Counted]:
    """A block whose losses are noted."""
    counted = Counted()
    token = _noting.set(counted)
    try:
        with _Weighed():
            yield counted
    finally:
        _noting.reset(token)


def note_classes(targets: Tensor, ignore_index: int | None, class_weights: Tensor | None) -> None:
    """Note a loss of classes, where a block of `noted` runs."""
    if (noting := _noting.get()) is not None:
        noting.note(targets, ignore_index, class_weights)


def note_operator(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> None:
    """Note a loss of classes that is an operator of torch's, or of another library that names things alike."""
    names = _names_of_loss(func)
    if names and _noting.get() is not None:
        given = dict(zip(names, args, strict=False)) | (kwargs or {})
        targets = given.get("target")
        if isinstance(targets, Tensor) and not targets.is_floating_point():  # else probabilities, of which all count
            note_classes(targets, given.get("ignore_index", -100), given.get("weight"))


@cache
def _names_of_loss(func: OpOverload) -> tuple[str, ...]:
    """Names of the operator's arguments if it can leave targets out."""
    names = tuple(argument.name for argument in func._schema.arguments)
    return names if "ignore_index" in names else ()


def mean_weight(readout: Any, normalizer: Normalizer | None, targets: Tensor) -> float:
    """What a mean over these targets, (N, ...), divides by: what the caller says, the readout says, or N.

    Raises:
        ValueError: it is no positive number.
    """
    if normalizer is not None:
        given: Any = normalizer(targets) if callable(normalizer) else normalizer
        weight = _as_number(given)
        if not 0 < weight < float("inf"):
            many = isinstance(given, Tensor) and given.numel() != 1
            raise ValueError(
                "normalizer must be, or return, a positive number, which the loss is divided by, got "
                + (f"a tensor {tuple(given.shape)}" if many else f"{given!r:.60}")
            )
        return weight
    total = total_weight(readout)
    weight = float(len(targets)) if total is None else float(total(targets))
    if not weight > 0:
        raise ValueError(
            "rewind_loss: no target counts, so there is no mean loss; use reduction='sum' or leave the batch out"
        )
    return weight


def _as_number(given: Any) -> float:
    """A number, or a tensor that holds one, as a float; NaN for what is none."""
    try:
        return float("nan") if isinstance(given, str | bool) else float(given)
    except (TypeError, ValueError):
        return float("nan")


def total_weight(readout: Any) -> Callable[[Tensor], float] | None:
    """`total_weight` of a readout, or of what a wrapper of parallel or compiled modules holds; None if it has none."""
    while readout is not None:
        if total := getattr(readout, "total_weight", None):
            return total
        readout = getattr(readout, "_orig_mod", None) or getattr(readout, "module", None)
    return None
