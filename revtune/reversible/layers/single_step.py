"""A single step of a net without a gradient, as text is generated: all its layers in one call of the kernel.

Shapes: B batch, I input, H hidden, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

from revtune.reversible.cells.cell import Cell
from revtune.reversible.kernel.step import stepped
from revtune.reversible.kernel.traced import by_jit
from revtune.reversible.layers.rnn_arguments import Hx

if TYPE_CHECKING:
    from revtune.reversible.layers.rnn import RevRNN


def single_step(net: RevRNN, x: Any, hx: Hx | None) -> tuple[Tensor, Hx] | None:
    """What a net's `forward` returns for a single step; None for all that the way over sequences has to take.

    Arguments are looked at as far as needed to know that they are in order. Those that are not are refused there.
    """
    # A trace, which torch checks under no_grad, names tensors by the variables that hold them when their size is read
    if type(x) is not Tensor or by_jit() or not _is_plain(net):
        return None
    shape, dims = x.shape, x.dim()
    if dims not in (2, 3) or shape[dims - 2 if net.batch_first else 0] != 1 or shape[-1] != net.input_size:
        return None
    rows = shape[: dims - 2] if net.batch_first else shape[1:-1]
    state_shape = (net.num_layers, *rows, net.hidden_size)
    states = first_states(net.cell, x, hx, state_shape)
    weights = [net._parameters.get(name) for name in _names(net.num_layers, net.bias)]
    results = states and stepped(net.cell, x, states, state_shape, weights, bias=net.bias, backend=net.options.backend)
    if not results:
        return None
    y, *after = results
    return y, after[0] if len(after) == 1 else tuple(after)


def first_states(cell: Cell, x: Tensor, hx: Hx | None, shape: tuple[int, ...]) -> Sequence[Tensor] | None:
    """The states that are given, or zeros of this shape; None if there are not as many as the cell has."""
    count = len(cell.states)
    if hx is None:
        return [x.new_zeros(shape) for _ in range(count)]
    states = hx if isinstance(hx, tuple | list) else (hx,)
    return states if len(states) == count else None


def _is_plain(net: RevRNN) -> bool:
    """Whether a net's step is that of its layers, one after another, and nothing else."""
    options = net.options
    if net.bidirectional or options.output != "all" or net.answers:
        return False
    if not net.training:
        return True
    rates = (options.input_dropout, options.hidden_dropout, options.output_dropout, options.weight_drop)
    return not (net.dropout or any(rates))


@cache
def _names(layers: int, bias: bool) -> tuple[str, ...]:
    """The names of all parameters, layer by layer."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if bias else 2]
    return tuple(f"{name}_l{layer}" for layer in range(layers) for name in names)
