"""Accumulators that gradients of large weights go into directly, so that no dense gradient of a chunk is made.

`rewind_loss` opens a collection of sinks. An embedding or a readout that finds one for its weight adds its gradient
there and gives autograd nothing, in the stream's own backward: gradients that the caller's code takes on the way, as
adversarial training does or a penalty on gradients, are autograd's alone. A tied weight has one sink. Sparse
gradients, as of nn.Embedding(sparse=True), stay sparse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from revtune.reversible.own_pages import zeros
from revtune.sequences import setting


class Sinks:
    """Gradients by tensor, added up over chunks."""

    def __init__(self) -> None:
        self._grads: dict[int, tuple[Tensor, Tensor]] = {}  # by id, with the tensor so that no other takes its id
        self._backward: int | None = None  # the stream's that runs

    @contextmanager
    def gathering(self, roots: Sequence[Tensor]) -> Iterator[None]:
        """A block in which the backward from these tensors is the stream's, and those that run within it are not."""
        handles = [root.grad_fn.register_prehook(self._begin) for root in roots if root.grad_fn is not None]
        try:
            yield
        finally:
            self._backward = None
            for handle in handles:
                handle.remove()

    def _begin(self, _: object) -> None:
        if self._backward is None:
            self._backward = _running()

    @property
    def gather(self) -> bool:
        """Whether the backward that runs now is the stream's."""
        return self._backward is not None and self._backward == _running()

    def of(self, tensor: Tensor) -> Tensor:
        """The accumulator of this tensor, dense, zero at first."""
        _, kept = self._grads.get(id(tensor), (tensor, None))
        if kept is None:
            # Of a wide embedding few rows are looked up: those of others take no memory before all of it is scaled
            kept = zeros(tensor, tuple(tensor.shape))
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


def _running() -> int:
    """The backward that runs now."""
    number: int = torch._C._current_graph_task_id()  # private, but what torch's own checkpoints ask
    return number


class Sink(NamedTuple):
    """Where the gradient of one weight goes.

    Attributes:
        grad: the accumulator.
        sinks: those that it is one of.
    """

    grad: Tensor
    sinks: Sinks

    @property
    def takes(self) -> bool:
        """Whether the backward that runs now is the stream's, and has no graph; else the gradient is autograd's."""
        return self.sinks.gather and not torch.is_grad_enabled()


def sink_of(weight: Tensor) -> Sink | None:
    """Where the gradient of a leaf weight that requires one goes, or None."""
    sinks = _open.get()
    if sinks is None or not (torch.is_grad_enabled() and weight.requires_grad and weight.is_leaf):
        return None
    return Sink(sinks.of(weight), sinks)
