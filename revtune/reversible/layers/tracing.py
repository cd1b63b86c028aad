"""Layers in graphs: torch.compile, torch.export and torch.jit.trace see a layer as operators, torch.fx as a leaf."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy, Tracer

from revtune.processes import share_of_batch
from revtune.reversible.cells.cell import Cell, State
from revtune.reversible.kernel.tape import LayerTensors
from revtune.reversible.kernel.traced import may_go_back
from revtune.reversible.layers.layer import LayerSettings
from revtune.reversible.layers.loops import decompose_for_onnx
from revtune.reversible.layers.stack_arguments import StackArguments
from revtune.reversible.layers.stack_operator import stack_operator

decompose_for_onnx()


def run_as_operator(
    cell: Cell,
    layers: list[tuple[LayerTensors, LayerSettings]],
    x: Tensor,
    *,
    dropout: float,
    backend: str,
    every: bool,
) -> tuple[Tensor | None, State]:
    """Run layers over (T, B, I) as torch.ops.revtune.stack.

    Args:
        cell: of all layers.
        layers: tensors and settings of each, bottom first.
        x: inputs.
        dropout: in front of each layer but the first.
        backend: as users name it.
        every: whether outputs are wanted.

    Returns:
        Outputs (T, B, H) or None, and the final states, (L, B, H) each, in the dtypes of the first ones.

    Raises:
        ValueError: rows of a batch of several processes would be dropped out, whose masks the graph would not know.
    """
    if dropout and len(layers) > 1 and share_of_batch() is not None:
        raise ValueError(
            "a compiled net with dropout between layers does not know of Processes.share; run it uncompiled"
        )
    assert cell.native is not None
    tensors = [tensors for tensors, _ in layers]
    state = [torch.stack(states) for states in zip(*(one.state for one in tensors), strict=True)]
    weights = [one.weights[name] for one in tensors for name in ("ih", "hh", "bias") if name in one.weights]
    masks = [settings.masks[part] for _, settings in layers for part in cell.states[0] if settings.masks]
    seeds = torch.randint(2**62, (len(layers) - 1,)) if dropout and len(layers) > 1 else None
    train, names = may_go_back((x, *state, *weights)), "\n".join(settings.name for _, settings in layers)
    given = StackArguments(
        x, state, weights, masks, seeds, layers[0][1].lengths, dropout, cell.native.max_forget_bits,
        cell.native.forgetting, cell.native.bounded, backend, every, train, names,
    )  # fmt: skip
    y, final = stack_operator(given)
    states = tuple(last.to(first.dtype) for last, first in zip(final.unbind(), state, strict=True))
    return (y if every else None), states


def called_as_leaf(layer: nn.Module, input: Proxy, **others: Any) -> Proxy:
    """A call of the layer as one node of torch.fx's graph, as torch's own layers are in it.

    Raises:
        RuntimeError: the layer is all there is to trace.
    """
    assert isinstance(input.tracer, Tracer)
    if layer is input.tracer.root:
        raise RuntimeError(f"{type(layer).__name__} is a leaf of torch.fx's graphs: trace a module around it")
    path = input.tracer.path_of_module(layer)
    given = {name: value for name, value in others.items() if value is not None}
    return input.tracer.create_proxy("call_module", path, (input,), given)


def refuse_script(layer: nn.Module) -> None:
    """Refuse torch.jit.script.

    Raises:
        RuntimeError: names the layer and other ways.
    """
    raise RuntimeError(
        f"{type(layer).__name__} cannot be compiled by torch.jit.script; use torch.export, torch.compile or "
        "torch.jit.trace"
    )
