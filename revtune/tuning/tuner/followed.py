"""Forward passes in which it is followed whose the rows of layers are, as far as it is not known yet.

The first pass of a network is followed from the batch (`following`), and so is a pass in which a layer meets an input
of another shape. Other passes go by what was found. Where rows depend on the data, every pass is followed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from revtune.tuning.hypers.hyperparameters import Hyperparameters
from revtune.tuning.random_states import random_states, set_random_states
from revtune.tuning.responses.following import Following
from revtune.tuning.responses.recurrent_rows import hooked
from revtune.tuning.responses.responding import Responding
from revtune.tuning.responses.rows import Lost, RowsMemory
from revtune.tuning.trees import tensors
from revtune.tuning.tuner.moving_buffers import MovingBuffers


def predicted(
    run: Callable[[], Any], model: nn.Module, batch: Any, hypers: Hyperparameters, memory: RowsMemory,
    buffers: MovingBuffers, batch_dim: int,
) -> Any:  # fmt: skip
    """What `run` gives in the pass that is bound. It is run again, from the start, if it must be followed after all.

    Args:
        run: the prediction.
        model: the network.
        batch: whose tensors have their examples in dimension `batch_dim`, or else in dimension 0.
        hypers: where the pass is bound.
        memory: of the rows.
        buffers: what passes change.
        batch_dim: which dimension is examples.
    """
    bound = hypers.current
    assert bound is not None
    replaying = bound.record is not None and not bound.record.recording
    if not replaying:
        memory.begin((model.training, *(tensor.shape for tensor in tensors(batch, floating=False))))
    if bound.size > 1 and not replaying and (not memory.begun or memory.changing):
        return followed(run, model, batch, bound.size, memory, batch_dim)[0]
    if replaying:
        memory.replaying = True
        try:
            return run()
        finally:
            memory.replaying = False
    states, kept = random_states(hypers.raw.device), 0 if bound.record is None else bound.record.kept
    try:
        with buffers.kept(Lost):
            return run()
    except Lost:
        set_random_states(states, hypers.raw.device)
        if bound.record is not None:
            bound.record.forget(kept)
    return followed(run, model, batch, bound.size, memory, batch_dim)[0]


def followed(
    run: Callable[[], Any], model: nn.Module, batch: Any, size: int, memory: RowsMemory, batch_dim: int
) -> tuple[Any, Following]:
    """What `run` gives for B examples, followed from the batch, and what knows whose it is."""
    following = Following()
    memory.begin((model.training, *(tensor.shape for tensor in tensors(batch, floating=False))))
    for constant in itertools.chain(model.parameters(), model.buffers()):
        if not is_lazy(constant):  # what it will be is made in the pass
            following.constant(constant)
    for tensor in tensors(batch, floating=False):
        dims = [dim for dim in (batch_dim, 0) if dim < tensor.dim() and tensor.shape[dim] == size]
        if dims:
            following.mark(tensor, dims[0])
    memory.following = following
    try:
        with hooked(model, following, Responding), following:
            out = run()
        memory.begun = True
        return out, following
    finally:
        memory.following = None
