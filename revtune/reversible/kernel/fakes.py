"""What the kernel's operators give back, told without running them, so that tracing can go through them.

`forward`, `infer`, `rewind`, `recall_cells` and `digest` answer with numbers that depend on data; they are only ever
called inside `sequence` and by tapes, and have no fake.
"""

from __future__ import annotations

import torch
from torch import Tensor

from revtune.reversible.kernel import backend as native

_PANELS = {"avx512": 32, "avx2": 16, "plain": 8}
"""Outputs of the small product that stand side by side, by instruction set."""


def pack(weight: Tensor, blocks: int) -> Tensor:
    """Room for the packed weight: products of a half, each padded to whole panels."""
    panel, units = _PANELS[torch.ops.revtune.instruction_set()], weight.shape[1]
    products = (2, 1) if blocks == 3 else (blocks,)
    rows = sum(-(-some * units // panel) * panel for some in products)
    return weight.new_empty(2 * rows * units)


def pack_projection(weight: Tensor) -> Tensor:
    """Room for a weight (G, I) whose outputs are padded to whole panels."""
    panel = _PANELS[torch.ops.revtune.instruction_set()]
    return weight.new_empty(-(-weight.shape[0] // panel) * panel * weight.shape[1])


def project_back(d: Tensor, weight: Tensor) -> Tensor:
    """(N, G) to (N, I)."""
    return d.new_empty(d.shape[0], weight.shape[1])


def alike(x: Tensor) -> Tensor:
    """A tensor of the same shape."""
    return torch.empty_like(x)


def nothing(*arguments: object) -> None:
    """What is written goes into tensors that were given."""


def _register() -> None:
    makers = {"pack": pack, "pack_projection": pack_projection, "project_back": project_back}
    makers |= dict.fromkeys(("gate_sigmoid", "gate_tanh"), alike)
    makers |= dict.fromkeys(("recall", "gradient", "project_into", "add_outer"), nothing)
    for name, fake in makers.items():
        torch.library.register_fake(f"revtune::{name}")(fake)


native.when_loaded(_register)
