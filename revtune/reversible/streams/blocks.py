"""How many steps of a chunk a readout is given at once, so that what its graph keeps fits a budget.

Nobody says how wide a readout is. Its graph tells: it is built for one step and for two, and what the second step adds
to the tensors that autograd saves is what every step takes. What is left of the first is what all steps share: weights.

Shapes: K steps, B batch, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from revtune.reversible.kernel.chunks import budget_on, evened_out
from revtune.reversible.streams.chunk_graph import Autocast
from revtune.reversible.streams.held import held_tensors
from revtune.reversible.streams.keys import Key
from revtune.reversible.streams.trials import remember, trial
from revtune.sequences import Positions, handing

BLOCK_BYTES = 2**20
"""Bytes that the graph of a block may always keep. Several tensors as large stand beside them; those of most readouts
lie in C's heap, which keeps holes of their size."""

WEIGHTS_SHARE = 4
"""A block may keep a fourth of what the readout's weights take, if that is more. Each block reads all weights and adds
to all their gradients, so that small blocks of a large vocabulary lose time."""

FEWEST_POSITIONS = 32
"""Positions of a block at least, since every block reads all weights."""

_known: dict[Hashable, tuple[int, int]] = {}
"""Bytes of a step and of what steps share, of readouts as they stand and shapes."""


def block_steps(
    readout: Callable[..., Tensor], standing: Key | None, loss: Callable[[Tensor, Tensor], Tensor], y: Tensor,
    targets: Tensor, autocast: Autocast, chunk: int, limit: int | None,
) -> int:  # fmt: skip
    """Steps of each block of a chunk, evened out; shapes alone decide.

    Args:
        readout: the user's readout.
        standing: its key; with None nothing is remembered of it.
        loss: what calls it; the summed loss of positions.
        y, targets: of some steps, (S, B, H) and (S, B, ...).
        autocast: the caller's setting.
        chunk: K.
        limit: bytes that the graph of a block may keep at most, or None where memory has no limit.
    """
    rows = y.shape[1]
    fewest = -(-FEWEST_POSITIONS // rows)
    if chunk <= fewest:
        return chunk
    widths = (tuple(tensor.shape) for tensor in held_tensors(readout, set()))
    key = standing and (standing, y.shape[1:], targets.shape[1:], y.dtype, autocast.enabled, *widths)
    known = _known.get(key)
    if known is None:
        two = (torch.cat([part[:1]] * 2) for part in (y.detach(), targets))  # the last chunk may have one step alone
        one_step, two_steps = (
            kept_bytes(readout, loss, outputs, wanted, autocast)
            for outputs, wanted in ((y[:1].detach(), targets[:1]), tuple(two))
        )
        known = remember(_known, key, (two_steps - one_step, 2 * one_step - two_steps))
    step_bytes, shared_bytes = known
    budget = max(budget_on(y.device, BLOCK_BYTES), shared_bytes // WEIGHTS_SHARE)
    most = min(budget, limit or budget) // step_bytes if step_bytes > 0 else chunk
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
