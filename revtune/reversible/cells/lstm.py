"""RevLSTM: an LSTM whose two halves update each other in turn."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from revtune.reversible.arguments import check_bits, check_flag
from revtune.reversible.cells import fixed
from revtune.reversible.cells.cell import Cell, Coupling, NativeSettings, Stage, Step, forget_gate, in_kernel, limited


def rev_lstm(max_forget_bits: float | None = 3.0, *, forgetting: bool = True, bounded: bool = True) -> Cell:
    """RevLSTM (MacKay et al. 2018, section 3.1), each half of both states from the other half::

        f, p, i, o = sigmoid(A1 [x; h2])    g = tanh(A1' [x; h2])
        c1 <- f * c1 + i * g      h1 <- p * h1 + (1 - p) * o * tanh(c1)
        then c2 and h2 in the same way from the new h1

    `bounded=False` takes the paper's own update, h1 <- p * h1 + o * tanh(c1). With it h reaches 1025 where p comes
    near 1, and p depends on h: under Adam such states ran away at the learning rates that nn.LSTM takes
    (docs/revlstm.md). With (1 - p), as RevGRU has it, |h| <= max(|h_0|, 1), nn.LSTM's own range.

    f and p are at most 1023/1024, so |c| <= 1025 (or what it started from). Without forgetting (NF-RevLSTM) both
    multipliers are 1 and the updates stay the same. Gate blocks, for input and recurrent weights alike: f1 p1 i1 o1 g1
    f2 p2 i2 o2 g2. `max_forget_bits` and errors as in `forget_gate`.
    """
    check_bits(max_forget_bits)
    check_flag("forgetting", forgetting)
    check_flag("bounded", bounded)
    halves = (("h1", "c1", "h2", 0), ("h2", "c2", "h1", 5))  # h and c, the part they read, their first block of rows
    cell = Cell(
        name="RevLSTM" if forgetting else "NF-RevLSTM",
        states=(("h1", "h2"), ("c1", "c2")),
        stages=tuple(
            Stage(
                blocks=5,
                gates=partial(_lstm_gates, other=other, first=first, bits=max_forget_bits, forgetting=forgetting),
                couplings=(
                    Coupling(cell, partial(_lstm_cell, forgetting=forgetting)),
                    Coupling(part, partial(_lstm_hidden, cell=cell, forgetting=forgetting, bounded=bounded)),
                ),
            )
            for part, cell, other, first in halves
        ),
        bounded=forgetting,
    )
    return in_kernel(cell, NativeSettings(max_forget_bits, forgetting, bounded))


def _lstm_gates(step: Step, *, other: str, first: int, bits: float | None, forgetting: bool) -> tuple[Tensor, ...]:
    h = step.part(other)
    n = h.shape[-1]
    pre = step.x + step.product("hh", h, rows=(first, first + 5))
    sigmoids = torch.sigmoid(pre[:, : 4 * n])
    forget = sigmoids[:, : 2 * n]
    forget = forget_gate(forget, bits, top=fixed.FORGET_ONE - 1) if forgetting else limited(forget, bits)
    f, p = forget.chunk(2, -1)
    i, o = sigmoids[:, 2 * n :].chunk(2, -1)
    return f, p, i, o, torch.tanh(pre[:, 4 * n :])


def _lstm_cell(
    step: Step, f: Tensor, p: Tensor, i: Tensor, o: Tensor, g: Tensor, *, forgetting: bool
) -> tuple[Tensor | None, Tensor]:
    return f if forgetting else None, i * g


def _lstm_hidden(
    step: Step, f: Tensor, p: Tensor, i: Tensor, o: Tensor, g: Tensor, *, cell: str, forgetting: bool, bounded: bool
) -> tuple[Tensor | None, Tensor]:
    share = (1.0 - p) * o if bounded else o
    return p if forgetting else None, share * torch.tanh(step.part(cell))  # c as this step has made it
