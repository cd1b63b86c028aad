"""The autograd graph of one chunk: what gradients reach in it, and how they are taken."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from revtune.reversible.streams.hooks import hooks_silenced


class Autocast:
    """The caller's autocast setting, for the parts of a stream that are the caller's own: encoder and readout."""

    def __init__(self, device: torch.device) -> None:
        self.device = device.type
        self.enabled = torch.is_autocast_enabled(device.type)
        self.dtype = torch.get_autocast_dtype(device.type)

    def again(self) -> AbstractContextManager[object]:
        """Put the caller's setting back for a block."""
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.enabled)


def leaves(roots: Sequence[Tensor]) -> list[Tensor]:
    """The leaf tensors that a gradient of any of these would reach."""
    found = {id(root): root for root in roots if root.grad_fn is None and root.requires_grad}
    waiting = list({root.grad_fn: None for root in roots if root.grad_fn is not None})
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):  # autograd's AccumulateGrad, the end of a path
            found[id(node.variable)] = node.variable
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return list(found.values())


def chunk_gradients(
    roots: Sequence[Tensor], tensors: list[Tensor], cotangents: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Gradients of a chunk's `roots` to these leaves, from their own gradients, or 1 for None."""
    if not (roots and tensors):
        return (None,) * len(tensors)
    given = [None if own is None else own.to(root.dtype) for root, own in zip(roots, cotangents, strict=True)]
    with hooks_silenced(tensors):
        # The graph is kept for the parts of it that the caller built outside, which the next chunk runs through too
        return torch.autograd.grad(roots, tensors, given, retain_graph=True, allow_unused=True)
