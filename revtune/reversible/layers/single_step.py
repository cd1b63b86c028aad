"""A single step of a net without a gradient, as text is generated: all its layers in one call of the kernel.

Shapes: B batch, I input, H hidden, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from revtune.reversible.kernel.step import stepped
from revtune.reversible.layers.rnn_arguments import Hx

if TYPE_CHECKING:
    from revtune.reversible.layers.rnn import RevRNN


def single_step(net: RevRNN, x: Any, hx: Hx | None) -> tuple[Tensor, Hx] | None:
    """What a net's `forward` returns for a single step; None for all that the way over sequences has to take.

    Arguments are looked at as far as needed to know that they are in order. Those that are not are refused there.
    """
    if not isinstance(x, Tensor) or x.dtype != torch.float32 or not _is_plain(net):
        return None
    shape = x.shape
    if len(shape) == 3:
        rows, steps = shape[:2] if net.batch_first else (shape[1], shape[0])
        state_shape: tuple[int, ...] = (net.num_layers, rows, net.hidden_size)
    elif len(shape) == 2:
        steps, state_shape = shape[0], (net.num_layers, net.hidden_size)
    else:
        return None
    if steps != 1 or shape[-1] != net.input_size:
        return None
    states = _states(net, x, hx, state_shape)
    if states is None or not net.runs_native(x):
        return None
    assert net.cell.native is not None
    weights = [net._parameters.get(name) for name in _names(net.num_layers, net.bias)]
    results = stepped(net.cell.native, x, states, weights, bias=net.bias)
    if results is None:
        return None
    y, *after = results
    return y, after[0] if len(after) == 1 else tuple(after)


def _is_plain(net: RevRNN) -> bool:
    """Whether a net's step is that of its layers, one after another, and nothing else."""
    options = net.options
    if net.bidirectional or options.output != "all":
        return False
    if not net.training:
        return True
    rates = (options.input_dropout, options.hidden_dropout, options.output_dropout, options.weight_drop)
    return not (net.dropout or any(rates))


def _states(net: RevRNN, x: Tensor, hx: Hx | None, shape: tuple[int, ...]) -> Sequence[Tensor] | None:
    """First states of this shape, zeros where none are given, or None if they are not that."""
    count = len(net.cell.states)
    if hx is None:
        return [x.new_zeros(shape) for _ in range(count)]
    states = (hx,) if isinstance(hx, Tensor) else hx
    if not isinstance(states, tuple | list) or len(states) != count:
        return None
    if not all(isinstance(state, Tensor) and state.shape == shape for state in states):
        return None
    return states


@cache
def _names(layers: int, bias: bool) -> tuple[str, ...]:
    """The names of all parameters, layer by layer."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if bias else 2]
    return tuple(f"{name}_l{layer}" for layer in range(layers) for name in names)
