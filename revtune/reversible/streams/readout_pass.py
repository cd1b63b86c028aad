"""The readout above the recurrent stack, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from revtune.reversible.arguments import hooked
from revtune.reversible.streams.chunk_graph import Autocast, _grad, leaves, refuse_hooks
from revtune.reversible.streams.gradient_sinks import Sinks, opened
from revtune.reversible.streams.readout import Featured, LinearCrossEntropy
from revtune.reversible.transforms import refuse_transforms

Readout = Callable[..., Tensor]


class ReadoutPass:
    """Reads out positions and takes the gradient of their summed loss.

    Args:
        readout: the user's readout.
        sinks: where gradients go.
        device: of the outputs.
        context: tensors that it takes besides; their own graphs get gradients of all chunks at once.
    """

    def __init__(self, readout: Readout, sinks: Sinks, device: torch.device, context: Sequence[Tensor] = ()) -> None:
        self._readout, self._sinks = readout, sinks
        self._context = [(one, one.detach().requires_grad_(one.requires_grad)) for one in context]
        self._head = readout.head if isinstance(readout, Featured) else readout
        self._by_hand = type(self._head) is LinearCrossEntropy and not hooked(self._head)
        self._autocast = Autocast(device)
        if torch.is_grad_enabled() and not (self._by_hand and self._head is readout):
            refuse_hooks("readout", readout)

    def loss(self, y: Tensor, targets: Tensor) -> Tensor:
        """The summed loss of these positions, 0-d float64."""
        with self._autocast.again():
            return _scalar(self._readout(y, targets, *self._given())).double()

    def _given(self) -> list[Tensor]:
        return [leaf for _, leaf in self._context]

    def gradient(self, y: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss of these positions and its gradient with respect to y, (N, H)."""
        head = self._head if self._by_hand else None
        if isinstance(head, LinearCrossEntropy) and head is self._readout:
            loss, dy = head.loss_and_gradient(y, targets, self._sinks)
            assert dy is not None
            return loss, dy
        if isinstance(head, LinearCrossEntropy) and isinstance(self._readout, Featured):
            return self._featured(self._readout, head, y, targets)
        y = y.detach().requires_grad_()
        with torch.enable_grad(), opened(self._sinks), self._autocast.again():
            total = _scalar(self._readout(y.clone(), targets, *self._given()))
        return total.detach().double(), self._back(total, None, y)

    def _featured(
        self, readout: Featured, head: LinearCrossEntropy, y: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `gradient`, part by part, each part's features and loss computed once."""
        total, dy = torch.zeros((), dtype=torch.float64, device=y.device), torch.zeros_like(y)
        for part in readout.parts(targets):
            some = y[part].requires_grad_()
            with torch.enable_grad(), opened(self._sinks), self._autocast.again():
                features, classes = readout.features(some.clone(), targets[part], *self._given())
                features = head.cast(features)
            loss, cotangent = head.loss_and_gradient(features, classes, self._sinks)
            total += loss
            dy[part] = self._back(features, cotangent, some)
            del features
        return total, dy

    def _back(self, root: Tensor, cotangent: Tensor | None, y: Tensor) -> Tensor:
        """Carry the gradient of what was read out of y to whatever it came from; that of y."""
        tensors, origin = leaves(root), {id(leaf): one for one, leaf in self._context}
        dy = torch.zeros_like(y)
        for tensor, grad in zip(tensors, _grad(root, tensors, cotangent), strict=True):
            if tensor is y:
                dy = dy if grad is None else grad
            else:
                self._sinks.add(origin.get(id(tensor), tensor), grad)
        return dy


def _scalar(loss: Tensor) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"readout(y, targets) must return the summed loss of its positions, one number, got {shape}")
    refuse_transforms([loss])
    return loss.reshape(())
