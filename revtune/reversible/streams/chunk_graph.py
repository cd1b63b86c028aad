"""The autograd graph of one chunk: what gradients reach in it, and how they are taken."""

from __future__ import annotations

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


def leaves(root: Tensor) -> list[Tensor]:
    """The leaf tensors that a gradient of `root` would reach."""
    if root.grad_fn is None:
        return [root] if root.requires_grad else []
    seen, waiting, found = {root.grad_fn}, [root.grad_fn], []
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):  # autograd's AccumulateGrad, the end of a path
            found.append(node.variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return found


def chunk_gradients(root: Tensor, tensors: list[Tensor], cotangent: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of a chunk's `root` to these leaves, from its own gradient `cotangent`, or 1 for None."""
    if not tensors:
        return ()
    cotangent = cotangent if cotangent is None else cotangent.to(root.dtype)
    with hooks_silenced(tensors):
        # The graph is kept for the parts of it that the caller built outside, which the next chunk runs through too
        return torch.autograd.grad(root, tensors, cotangent, retain_graph=True, allow_unused=True)
