"""Forward differentiation of a cell's own equations, whose rounding of gates only passes tangents with gradients on."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad


@contextlib.contextmanager
def differentiating_forward() -> Iterator[None]:
    """Within this block `make_dual` works; a level that is open already is used, as torch has one at a time."""
    level = contextlib.nullcontext() if forward_ad._current_level >= 0 else forward_ad.dual_level()
    with level, torch.enable_grad(), warnings.catch_warnings():
        # forward mode compiles some of its formulas by torch.jit, and torch warns of that itself
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        yield


def make_dual(primal: Tensor, tangent: Tensor) -> Tensor:
    """A tensor with a tangent, and with a graph: `round_forget` passes both on where there is one."""
    dual: Tensor = forward_ad.make_dual(primal.detach().requires_grad_(), tangent.detach())
    return dual


def primal_and_tangent(x: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor's value and its tangent, zero where it has none."""
    primal, tangent = forward_ad.unpack_dual(x)
    return primal.detach(), torch.zeros_like(primal) if tangent is None else tangent.detach()
