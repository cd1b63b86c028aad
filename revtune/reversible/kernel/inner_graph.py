"""Graphs that are built and used up inside one call: the caller's hooks of saved tensors have no part in them.

`torch.utils.checkpoint` runs a function again when a graph of it is asked for a tensor that it saved, so a graph of
each step would run the whole sequence again at each step; `save_on_cpu` would move each step's tensors to and fro.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def inner_graph() -> AbstractContextManager[object]:
    """Within this block graphs keep what they save themselves, as without hooks."""
    # Hooks of our own where there are none would only cost time
    return nullcontext() if _hooks() is None else saved_tensors_hooks(_pack, _unpack)


def watched() -> bool:
    """Whether hooks that are not `inner_graph`'s see what graphs save, as of a function that is checkpointed."""
    hooks = _hooks()
    return hooks is not None and hooks[0] is not _pack


def _hooks() -> Any:
    # Private, since torch tells nobody else
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _pack(tensor: Tensor) -> tuple[Tensor, int]:
    """A saved tensor, without its graph, which would hold itself, and the version that autograd checks."""
    return tensor.detach(), tensor._version


def _unpack(packed: tuple[Tensor, int]) -> Tensor:
    tensor, version = packed
    if tensor._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: a tensor "
            f"{tuple(tensor.shape)} of {tensor.dtype} is at version {tensor._version}; expected version {version}"
        )
    return tensor
