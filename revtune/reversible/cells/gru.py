"""RevGRU: a GRU whose two halves update each other in turn."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from revtune.reversible.arguments import check_bits, check_flag
from revtune.reversible.cells.cell import Cell, Coupling, NativeSettings, Stage, Step, forget_gate, in_kernel, limited


def rev_gru(max_forget_bits: float | None = 3.0, *, forgetting: bool = True) -> Cell:
    """RevGRU (MacKay et al. 2018, section 3.1), each half of the state from the other::

        z, r = sigmoid(W1 [x; h2])    g = tanh(U1 [x; r * h2])    h1 <- z * h1 + (1 - z) * g
        then h2 in the same way from the new h1

    The rounded z stands in both places, so |h| <= max(|h_0|, 1) always. Without forgetting (NF-RevGRU) the multiplier
    is 1 and the update stays the same, with z not rounded. Gate blocks, for input and recurrent weights alike: z1 r1 g1
    z2 r2 g2. `max_forget_bits` and errors as in `forget_gate`.
    """
    check_bits(max_forget_bits)
    check_flag("forgetting", forgetting)
    halves = (("h1", "h2", 0), ("h2", "h1", 3))  # the part, the part it reads, the first of its blocks of weight rows
    cell = Cell(
        name="RevGRU" if forgetting else "NF-RevGRU",
        states=(("h1", "h2"),),
        stages=tuple(
            Stage(
                blocks=3,
                gates=partial(_gru_gates, other=other, first=first, bits=max_forget_bits, forgetting=forgetting),
                couplings=(Coupling(part, partial(_gru_update, forgetting=forgetting)),),
            )
            for part, other, first in halves
        ),
        bounded=forgetting,
    )
    return in_kernel(cell, NativeSettings(max_forget_bits, forgetting))


def _gru_gates(step: Step, *, other: str, first: int, bits: float | None, forgetting: bool) -> tuple[Tensor, ...]:
    h = step.part(other)
    n = h.shape[-1]
    z, r = torch.sigmoid(step.x[:, : 2 * n] + step.product("hh", h, rows=(first, first + 2))).chunk(2, -1)
    g = torch.tanh(step.x[:, 2 * n :] + step.product("hh", r * h, rows=(first + 2, first + 3)))
    return forget_gate(z, bits) if forgetting else limited(z, bits), g  # no multiplier of NF-RevGRU, so not rounded


def _gru_update(step: Step, z: Tensor, g: Tensor, *, forgetting: bool) -> tuple[Tensor | None, Tensor]:
    return z if forgetting else None, (1.0 - z) * g
