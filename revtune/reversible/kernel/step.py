"""A step of RevGRU or RevLSTM layers at once, from weights as they are stored: torch.ops.revtune.step.

To pack weights, check them and make a layer's objects costs several times what one step does. The operator does none
of that and gives the bits that the way over whole sequences gives. What it cannot take it leaves to that way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from revtune.reversible.cells.cell import Cell, slope_of
from revtune.reversible.kernel.backend import insist, load, when_loaded
from revtune.reversible.kernel.traced import by_jit
from revtune.reversible.transforms import active

_PLAIN = (Tensor, nn.Parameter)
"""Tensors that the operator may be handed; others bring rules of their own."""


def stepped(
    cell: Cell,
    x: Tensor,
    states: Sequence[Tensor],
    shape: tuple[int, ...],
    weights: Sequence[Tensor | None],
    *,
    bias: bool,
    backend: str,
) -> list[Tensor] | None:
    """Outputs and final states of one step without a gradient; None where the operator does not take it.

    Args:
        cell: of all layers.
        x: inputs, (B, I), with dimensions of size 1 anywhere before I.
        states: h, or h and c, of L * B rows. Those of float64 are exact.
        shape: what the states must have.
        weights: of each layer in order `ih`, `hh`, and two biases if it has any; None for one that is not there.
        bias: whether it has.
        backend: as in `chosen`.
    """
    if cell.native is None:
        return None
    for tensor in (x, *states, *weights):
        # One on the meta device would have the operator's fake answer, with numbers that nobody has written
        if tensor is None or type(tensor) not in _PLAIN or not tensor.is_cpu:
            return None
    for state in states:
        if state.shape != shape:
            return None
    if by_jit() or active() or not (load() if backend == "auto" else backend == "native" and insist()):
        return None
    bits, forgetting, bounded = cell.native
    results: list[Tensor] = torch.ops.revtune.step(x, states, weights, bias, slope_of(bits), forgetting, bounded)
    return results or None


def _fake(
    x: Tensor, states: list[Tensor], weights: list[Tensor], bias: bool, slope: float, forgetting: bool, bounded: bool
) -> list[Tensor]:
    return [x.new_empty(*x.shape[:-1], states[0].shape[-1]), *map(torch.empty_like, states)]


when_loaded(lambda: torch.library.register_fake("revtune::step")(_fake))
