"""Fakes of the kernel's operators: the shapes that they return, without running them, for torch.compile.

`forward`, `infer`, `rewind`, `recall_cells` and `digest` return numbers that depend on data. They are called inside
`sequence` and by tapes alone, which are not traced, and have no fake.
"""

from __future__ import annotations

import torch
from torch import Tensor

from revtune.reversible.kernel.backend import when_loaded
from revtune.reversible.kernel.chunk_buffers import GRU_BLOCKS, PARTS

_PANELS = {"avx512": 32, "avx2": 16, "plain": 8}
"""Outputs of the recurrent product that stand side by side in packed weights, by instruction set (csrc/product.h)."""


def pack(weight: Tensor, blocks: int) -> Tensor:
    """A recurrent weight as packed: for each half its products, each padded to whole panels."""
    panel, units = _PANELS[torch.ops.revtune.instruction_set()], weight.shape[1]
    products = (2, 1) if blocks == GRU_BLOCKS else (blocks,)  # z and r of a RevGRU read h, its g reads r * h
    rows = sum(-(-size * units // panel) * panel for size in products)
    return weight.new_empty(PARTS * rows * units)


def pack_projection(weight: Tensor) -> Tensor:
    """An input weight (G, I) as packed, its outputs padded to whole panels."""
    panel = _PANELS[torch.ops.revtune.instruction_set()]
    return weight.new_empty(-(-weight.shape[0] // panel) * panel * weight.shape[1])


def project_back(d: Tensor, weight: Tensor) -> Tensor:
    """The gradient (N, I) of inputs, from that of outputs, (N, G)."""
    return d.new_empty(d.shape[0], weight.shape[1])


def elementwise(x: Tensor) -> Tensor:
    """A function of each number."""
    return torch.empty_like(x)


def in_place(*arguments: object) -> None:
    """Nothing is returned: results are written into tensors that were given."""


def _register() -> None:
    fakes = {"pack": pack, "pack_projection": pack_projection, "project_back": project_back}
    fakes |= dict.fromkeys(("gate_sigmoid", "gate_tanh"), elementwise)
    fakes |= dict.fromkeys(
        ("recall", "gradient", "pack_into", "project_into", "project_back_into", "add_outer"), in_place
    )
    fakes |= dict.fromkeys(("add_answer", "scale_back", "answer_back", "tangent"), in_place)
    for name, fake in fakes.items():
        torch.library.register_fake(f"revtune::{name}")(fake)


when_loaded(_register)
