"""Whether a graph is being made of what is computed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def is_traced(x: Tensor) -> bool:
    """Whether a graph is being made of what happens to this tensor, so that operators alone may compute with it."""
    return torch.compiler.is_compiling() or isinstance(x, FakeTensor) or torch.jit.is_tracing()
