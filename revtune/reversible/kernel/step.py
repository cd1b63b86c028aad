"""A step of RevGRU or RevLSTM layers at once, from weights as they are stored: torch.ops.revtune.step.

To pack weights, check them and make a layer's objects costs several times what one step does. The operator does none
of that and gives the bits that the way over whole sequences gives. What it cannot take it leaves to that way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from revtune.reversible.cells.cell import NativeSettings, slope_of
from revtune.reversible.kernel.backend import when_loaded
from revtune.reversible.transforms import active

_PLAIN = {Tensor, nn.Parameter}
"""Tensors that the operator may be handed; others bring rules of their own."""


def stepped(
    cell: NativeSettings, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor | None], *, bias: bool
) -> list[Tensor] | None:
    """Outputs and final states of one step without a gradient; None where the operator does not take it.

    Args:
        cell: of all layers.
        x: inputs, (B, I), with dimensions of size 1 anywhere before I.
        states: h, or h and c, of shape (L, B, H), (L, H), or that of x with H in the place of I where there is one
            layer. Those of float64 are exact.
        weights: of each layer in order `ih`, `hh`, and two biases if it has any; None for one that is not there.
        bias: whether it has.
    """
    tracing = torch._C._get_tracing_state() is not None  # as torch.jit.is_tracing tells, which stubs leave out
    if tracing or active() or not are_plain((x, *states, *weights)):
        return None
    results: list[Tensor] = torch.ops.revtune.step(
        x, states, weights, bias, slope_of(cell.max_forget_bits), cell.forgetting, cell.bounded
    )
    return results or None


def are_plain(tensors: Iterable[object]) -> bool:
    """Whether all of these are tensors of no class of their own."""
    return set(map(type, tensors)) <= _PLAIN


def _fake(
    x: Tensor, states: list[Tensor], weights: list[Tensor], bias: bool, slope: float, forgetting: bool, bounded: bool
) -> list[Tensor]:
    return [x.new_empty(*x.shape[:-1], states[0].shape[-1]), *map(torch.empty_like, states)]


when_loaded(lambda: torch.library.register_fake("revtune::step")(_fake))
