"""Gradients of leaf weights, added in place where `F.linear` and `F.embedding` read them.

A chunk's gradient of a weight is as large as the weight. Autograd makes it anew for each chunk, which costs more memory
than all else where a vocabulary is large. What ran within `AddedInPlace` adds it to the open sink instead, and what is
as wide as the vocabulary lies in rooms. Gradients that the caller's own code takes on the way, as adversarial
training does or a penalty on gradients, are autograd's, and have a graph where it asks for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from revtune.reversible.kernel.inner_graph import watched
from revtune.reversible.kernel.matmuls import Products, products_for
from revtune.reversible.streams.class_losses import BlockRooms, cross_entropy
from revtune.reversible.streams.gradient_sinks import sink_of
from revtune.reversible.transforms import active

_ADDED = (F.embedding, F.linear, F.cross_entropy)


class AddedInPlace(TorchFunctionMode):
    """What runs within this block has its leaf weights' gradients taken by sinks, as soon as `gathering` computes them.

    Args:
        rooms: where the largest tensors of `F.linear` and `F.cross_entropy` may lie; without, the latter is torch's.
        linear: whether `F.linear` is among them.

    Attributes:
        gathers: whether the backward that runs now is the stream's, not one of the caller's own code.
    """

    def __init__(self, rooms: BlockRooms | None = None, *, linear: bool = True) -> None:
        super().__init__()
        self._rooms, self._linear, self.gathers = rooms, linear, False

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """A block in which sinks take gradients."""
        self.gathers = True
        try:
            yield
        finally:
            self.gathers = False

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        added = None
        if func not in _ADDED or watched():  # what is checkpointed runs again outside this block
            pass
        elif func is F.embedding:
            added = embedding(*args, **kwargs, adding=self)
        elif func is F.linear and self._linear:
            added = linear(*args, **kwargs, rooms=self._rooms, adding=self)
        elif func is F.cross_entropy and self._rooms is not None and _plain(args[0] if args else kwargs["input"]):
            added = cross_entropy(self._rooms, *args, **kwargs)
        return func(*args, **kwargs) if added is None else added


class _Into(NamedTuple):
    """Where the gradient of a leaf weight goes.

    Attributes:
        sink: the accumulator; None for autograd's own.
        adding: what tells whether a backward is the stream's; None where each is.
    """

    sink: Tensor | None = None
    adding: AddedInPlace | None = None

    @property
    def autograds(self) -> bool:
        """Whether the backward that runs now must be as autograd's own, since it has a graph or is the caller's."""
        return torch.is_grad_enabled() or not (self.adding is None or self.adding.gathers)


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, adding: AddedInPlace, rooms: BlockRooms | None = None
) -> Tensor | None:
    """`F.linear` whose weight's gradient goes into its sink; None where that has none or the call is no plain one."""
    if not _plain(input) or (into := _into(weight, adding)) is None or input.dtype != weight.dtype or not input.dim():
        return None
    product: Tensor = _Linear.apply(input, weight, bias, Products(), into, rooms)
    return product


def linear_in_order(input: Tensor, weight: Tensor) -> Tensor:
    """`F.linear` whose sums, and those of its gradients, have one order, on any number of threads.

    Under torch.func's transforms it is torch's own.
    """
    product: Tensor = (
        F.linear(input, weight) if active() else _Linear.apply(input, weight, None, products_for(input), _Into())
    )
    return product


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
    *,
    adding: AddedInPlace,
) -> Tensor | None:
    """`F.embedding` likewise."""
    if max_norm is not None or scale_grad_by_freq or sparse or not _plain(input):
        return None
    if (into := _into(weight, adding)) is None:
        return None
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    return _rows_of(input, weight, padding_idx, into)


def rows_into(ids: Tensor, weight: Tensor, padding_idx: int | None, sink: Tensor) -> Tensor:
    """`F.embedding` whose gradient goes straight into this sink."""
    return _rows_of(ids, weight, padding_idx, _Into(sink))


def _plain(input: Tensor) -> bool:
    return type(input) is Tensor and not torch.is_autocast_enabled(input.device.type) and not active()


def _into(weight: Tensor, adding: AddedInPlace) -> _Into | None:
    """Where the gradient of a weight goes that a sink is open for, else None."""
    usual = type(weight) in (Tensor, torch.nn.Parameter) and weight.layout is torch.strided and weight.dim() == 2
    sink = sink_of(weight) if usual else None
    return None if sink is None else _Into(sink, adding)


def _rows_of(ids: Tensor, weight: Tensor, padding_idx: int | None, into: _Into) -> Tensor:
    rows: Tensor = _LookUp.apply(ids, weight, padding_idx, into)
    return rows


class _LookUp(torch.autograd.Function):
    """An embedding whose gradient goes straight into its sink."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding_idx: int | None, into: _Into) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding_idx, ctx.into, ctx.shape = padding_idx, into, tuple(weight.shape)
        return torch.embedding(weight, ids)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, None, None]:
        (ids,) = ctx.saved_tensors
        if ctx.padding_idx is not None:
            grad = grad * (ids != ctx.padding_idx).unsqueeze(-1)
        at, rows = ids.reshape(-1), grad.reshape(-1, grad.shape[-1])
        if ctx.into.sink is None or ctx.into.autograds:
            return None, grad.new_zeros(ctx.shape).index_add(0, at, rows), None, None
        ctx.into.sink.index_add_(0, at, rows)
        return None, None, None, None


class _Linear(torch.autograd.Function):
    """A linear map whose weight's gradient goes straight into its sink, if it has one."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, products: Products, into: _Into,
        rooms: BlockRooms | None = None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(input, weight)
        ctx.products, ctx.into, ctx.room = products, into, None if rooms is None else rooms.dinput
        out = None if rooms is None else rooms.logits.tensor(input, (*input.shape[:-1], len(weight)))
        return products.linear(input, weight.detach(), None if bias is None else bias.detach(), out=out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        want_input, want_weight, want_bias, *_ = ctx.needs_input_grad
        rows, inputs = grad.reshape(-1, grad.shape[-1]), input.reshape(-1, input.shape[-1])
        dbias = rows.sum(0) if want_bias else None
        if ctx.into.autograds:
            dinput, own = grad @ weight if want_input else None, rows.t() @ inputs if want_weight else None
            return dinput, own, dbias, None, None, None
        own = torch.zeros_like(weight) if ctx.into.sink is None and want_weight else None
        if want_weight:
            ctx.products.add_outer(ctx.into.sink if own is None else own, rows, inputs)
        return ctx.products.back(grad, weight, ctx.room) if want_input else None, own, dbias, None, None, None
