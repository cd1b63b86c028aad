"""Gradients of leaf weights, added in place where `F.linear` and `F.embedding` read them.

A chunk's gradient of a weight is as large as the weight. Autograd makes it anew for each chunk, which costs more memory
than all else where a vocabulary is large. What ran within `AddedInPlace` adds it to the open sink instead, and what is
as wide as the vocabulary lies in rooms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from revtune.reversible.kernel.inner_graph import watched
from revtune.reversible.kernel.matmuls import Products, products_for
from revtune.reversible.streams.class_losses import BlockRooms, cross_entropy
from revtune.reversible.streams.gradient_sinks import Sink, sink_of
from revtune.reversible.transforms import active

_ADDED = (F.embedding, F.linear, F.cross_entropy)


class AddedInPlace(TorchFunctionMode):
    """What runs within this block has its leaf weights' gradients taken by sinks, as soon as they are computed.

    Args:
        rooms: where the largest tensors of `F.linear` and `F.cross_entropy` may lie; without, the latter is torch's.
        linear: whether `F.linear` is among them.
    """

    def __init__(self, rooms: BlockRooms | None = None, *, linear: bool = True) -> None:
        super().__init__()
        self._rooms, self._linear = rooms, linear

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _ADDED or watched():  # what is checkpointed runs again outside this block
            return func(*args, **kwargs)
        added = None
        if func is F.embedding:
            added = embedding(*args, **kwargs)
        elif func is F.linear and self._linear:
            added = linear(*args, **kwargs, rooms=self._rooms)
        elif func is F.cross_entropy and self._rooms is not None and _plain(args[0] if args else kwargs["input"]):
            added = cross_entropy(self._rooms, *args, **kwargs)
        return func(*args, **kwargs) if added is None else added


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, rooms: BlockRooms | None = None
) -> Tensor | None:
    """`F.linear` whose weight's gradient goes into its sink; None where that has none or the call is no plain one."""
    if not _plain(input) or (sink := _sink(weight)) is None or input.dtype != weight.dtype or not input.dim():
        return None
    product: Tensor = _Linear.apply(input, weight, bias, Products(), sink, rooms)
    return product


def linear_in_order(input: Tensor, weight: Tensor) -> Tensor:
    """`F.linear` whose sums, and those of its gradients, have one order, on any number of threads.

    Under torch.func's transforms it is torch's own.
    """
    product: Tensor = F.linear(input, weight) if active() else _Linear.apply(input, weight, None, products_for(input))
    return product


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor | None:
    """`F.embedding` likewise."""
    if max_norm is not None or scale_grad_by_freq or sparse or not _plain(input) or (sink := _sink(weight)) is None:
        return None
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    rows: Tensor = LookUp.apply(input, weight, padding_idx, sink)
    return rows


def _plain(input: Tensor) -> bool:
    return type(input) is Tensor and not torch.is_autocast_enabled(input.device.type) and not active()


def _sink(weight: Tensor) -> Sink | None:
    usual = type(weight) in (Tensor, torch.nn.Parameter) and weight.layout is torch.strided and weight.dim() == 2
    return sink_of(weight) if usual else None


class LookUp(torch.autograd.Function):
    """An embedding whose gradient goes straight into its sink."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding_idx: int | None, sink: Sink) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding_idx, ctx.sink = padding_idx, sink
        return torch.embedding(weight, ids)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, None, None]:
        (ids,) = ctx.saved_tensors
        if ctx.padding_idx is not None:
            grad = grad * (ids != ctx.padding_idx).unsqueeze(-1)
        at, rows = ids.reshape(-1), grad.reshape(-1, grad.shape[-1])
        if not ctx.sink.takes:
            return None, torch.zeros_like(ctx.sink.grad).index_add(0, at, rows), None, None
        ctx.sink.grad.index_add_(0, at, rows)
        return None, None, None, None


class _Linear(torch.autograd.Function):
    """A linear map whose weight's gradient goes straight into its sink, if it has one."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, products: Products, sink: Sink | None = None,
        rooms: BlockRooms | None = None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(input, weight)
        ctx.products, ctx.sink, ctx.room = products, sink, None if rooms is None else rooms.dinput
        out = None if rooms is None else rooms.logits.tensor(input, (*input.shape[:-1], len(weight)))
        return products.linear(input, weight.detach(), None if bias is None else bias.detach(), out=out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        want_input, want_weight, want_bias, *_ = ctx.needs_input_grad
        rows, inputs = grad.reshape(-1, grad.shape[-1]), input.reshape(-1, input.shape[-1])
        dbias = rows.sum(0) if want_bias else None
        if torch.is_grad_enabled() or (ctx.sink is not None and not ctx.sink.takes):
            dinput, own = grad @ weight if want_input else None, rows.t() @ inputs if want_weight else None
            return dinput, own, dbias, None, None, None
        own = torch.zeros_like(weight) if ctx.sink is None and want_weight else None
        if want_weight:
            ctx.products.add_outer(ctx.sink.grad if own is None else own, rows, inputs)
        return ctx.products.back(grad, weight, ctx.room) if want_input else None, own, dbias, None, None, None
