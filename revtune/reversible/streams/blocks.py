"""How many steps of a chunk a readout is given at once, so that what its graph keeps fits a budget.

Nobody says how wide a readout is. Its graph tells: it is built for one step and for two, and what the second step adds
to the tensors that autograd saves is what every step takes.

Shapes: K steps, B batch, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from revtune.reversible.kernel.chunks import evened_out
from revtune.reversible.streams.chunk_graph import Autocast
from revtune.reversible.streams.held import held_tensors
from revtune.reversible.streams.trials import key_of, remember, trial
from revtune.sequences import Positions, handing

BLOCK_BYTES = 2**18
"""Bytes that the graph of a block may keep. Beside them stand several tensors as large, and C's heap keeps holes of
their size, so that a block of megabytes would take more than the layer below it."""

FEWEST_POSITIONS = 32
"""Positions of a block at least, since every block reads all weights."""

_known: dict[Hashable, int] = {}
"""Bytes of a step, of readouts as they stand and shapes."""


def block_steps(
    readout: Callable[..., Tensor], loss: Callable[[Tensor, Tensor], Tensor], y: Tensor, targets: Tensor,
    autocast: Autocast, chunk: int, budget: int,
) -> int:  # fmt: skip
    """Steps of each block of a chunk, evened out; shapes alone decide.

    Args:
        readout: the user's readout.
        loss: what calls it; the summed loss of positions.
        y, targets: of some steps, (S, B, H) and (S, B, ...).
        autocast: the caller's setting.
        chunk: K.
        budget: bytes that the graph of a block may keep.
    """
    rows = y.shape[1]
    fewest = -(-FEWEST_POSITIONS // rows)
    if chunk <= fewest:
        return chunk
    widths = (tuple(tensor.shape) for tensor in held_tensors(readout, set()))
    key = (key_of("blocks", readout), y.shape[1:], targets.shape[1:], y.dtype, autocast.enabled, *widths)
    step_bytes = _known.get(key)
    if step_bytes is None:
        two = (torch.cat([part[:1]] * 2) for part in (y.detach(), targets))  # the last chunk may have one step alone
        one_step, two_steps = (
            kept_bytes(readout, loss, outputs, wanted, autocast)
            for outputs, wanted in ((y[:1].detach(), targets[:1]), tuple(two))
        )
        step_bytes = remember(_known, key, two_steps - one_step)
    most = budget // step_bytes if step_bytes > 0 else chunk
    return evened_out(chunk, most, fewest=fewest)


def kept_bytes(
    readout: Callable[..., Tensor], loss: Callable[[Tensor, Tensor], Tensor], y: Tensor, targets: Tensor,
    autocast: Autocast,
) -> int:  # fmt: skip
    """Bytes that the graph of the loss of these steps keeps."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()  # that of a view of all targets is more than its own
            storages[storage.data_ptr()] = min(storage.nbytes(), tensor.nbytes)
        return tensor

    rows = handing(Positions(rows=y.shape[1], steps=len(y)))
    with trial(readout, autocast), rows, torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(y.flatten(0, 1).requires_grad_().clone(), targets.flatten(0, 1))
    return sum(storages.values())
