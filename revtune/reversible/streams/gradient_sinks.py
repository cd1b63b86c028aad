"""Accumulators that gradients of large weights go into directly, so that no dense gradient of a chunk is made.

`rewind_loss` opens a collection of sinks. An embedding or a readout that finds one for its weight adds its gradient
there and gives autograd nothing. A tied weight has one sink. Sparse gradients, as of nn.Embedding(sparse=True), stay
sparse.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar

import torch
from torch import Tensor

from revtune.sequences import setting


class Sinks:
    """Gradients by tensor, added up over chunks."""

    def __init__(self) -> None:
        self._grads: dict[int, tuple[Tensor, Tensor]] = {}  # by id, with the tensor so that no other takes its id

    def of(self, tensor: Tensor) -> Tensor:
        """The accumulator of this tensor, dense, zero at first."""
        _, kept = self._grads.get(id(tensor), (tensor, None))
        if kept is None:
            kept = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
        elif kept.is_sparse:
            kept = kept.to_dense()
        self._grads[id(tensor)] = (tensor, kept)
        return kept

    def add(self, tensor: Tensor, grad: Tensor | None) -> None:
        """Add a gradient, if there is one, to this tensor's accumulator, which is sparse while all gradients are."""
        if grad is None:
            return
        _, kept = self._grads.get(id(tensor), (tensor, None))
        if grad.is_sparse and (kept is None or kept.is_sparse):
            total = grad.clone() if kept is None else kept + grad
            # one entry a row that was looked up, however long the sequence
            self._grads[id(tensor)] = (tensor, total.coalesce() if total._nnz() > tensor.shape[0] else total)
        else:
            self.of(tensor).add_(grad)  # never kept as the accumulator: autograd may hand the same tensor to others

    def tensors(self) -> list[Tensor]:
        """The tensors that gradients have been added up for."""
        return [tensor for tensor, _ in self._grads.values()]

    def drain(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors and their gradients; the sinks are empty then."""
        pairs = list(self._grads.values())
        self._grads = {}
        return [tensor for tensor, _ in pairs], [grad for _, grad in pairs]


_open: ContextVar[Sinks | None] = ContextVar("revtune_sinks", default=None)


def opened(sinks: Sinks) -> AbstractContextManager[None]:
    """Within this block `sink_of` finds these sinks."""
    return setting(_open, sinks)


def any_open() -> bool:
    """Whether sinks are open."""
    return _open.get() is not None


def sink_of(weight: Tensor) -> Tensor | None:
    """The open accumulator of a leaf weight that requires a gradient, or None."""
    sinks = _open.get()
    if sinks is None or not (torch.is_grad_enabled() and weight.requires_grad and weight.is_leaf):
        return None
    return sinks.of(weight)
