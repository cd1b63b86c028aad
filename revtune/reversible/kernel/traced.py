"""Whether a graph is being made of what is computed, and whether there may be a way back through it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor

from revtune.reversible.transforms import wants_gradient


def is_traced(x: Tensor) -> bool:
    """Whether a graph is being made of what happens to this tensor, so that operators alone may compute with it."""
    return torch.compiler.is_compiling() or isinstance(x, FakeTensor) or by_jit()


def free_size() -> Any:
    """A symbol for a size that only running tells; 0 for fake tensors outside graphs, which have no symbols."""
    try:
        return torch.library.get_ctx().new_dynamic_size()
    except DynamicOutputShapeException:
        return 0


def may_go_back(tensors: Iterable[Tensor]) -> bool:
    """Whether what is computed from these tensors now may be differentiated."""
    # torch.jit.trace checks its graph under no_grad, and a graph from there may be run with gradients
    return (torch.is_grad_enabled() or by_jit()) and any(wants_gradient(tensor) for tensor in tensors)


def by_jit() -> bool:
    """Whether torch.jit.trace runs; torch.compile, which cannot ask, need not."""
    return not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None
