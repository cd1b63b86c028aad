"""A cell of one's own: minGRU (Feng et al. 2024, "Were RNNs all we needed?"), made reversible.

    z = sigmoid(W_z x)      g = W_h x      h <- z * h + (1 - z) * g

That update is a coupling already: h is the part it changes, and z and g read x alone. So the cell is one part, one
stage, one coupling. docs/own-cell.md takes it apart.

    python examples/min_gru.py

trains it to hold numbers: each step brings a number and, now and then, a mark; the answer is the number that came with
the last mark.
"""

from __future__ import annotations

import torch
from torch import Tensor

import revtune as rt


def min_gru(max_forget_bits: float | None = None) -> rt.Cell:
    """A reversible minGRU. Weights: `ih` (2H, I) and `bias` (2H,), blocks z and g.

    Args:
        max_forget_bits: the most bits that a unit may forget a step; None for no limit.
    """

    def gates(step: rt.Step) -> tuple[Tensor, ...]:
        z, g = step.x.chunk(2, -1)
        return rt.forget_gate(torch.sigmoid(z), max_forget_bits), g

    def update(step: rt.Step, z: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        return z, (1.0 - z) * g

    stage = rt.Stage(blocks=2, gates=gates, couplings=(rt.Coupling("h", update),))
    return rt.Cell("minGRU", states=(("h",),), stages=(stage,))


def held_numbers(steps: int, rows: int) -> tuple[Tensor, Tensor]:
    """Numbers and marks (T, B, 2), and the number that came with the last mark (T, B)."""
    numbers, marks = torch.rand(steps, rows) * 2 - 1, torch.rand(steps, rows) < 0.1
    marks[0] = True
    last = torch.where(marks, torch.arange(steps).unsqueeze(1), 0).cummax(0).values
    return torch.stack([numbers, marks.float()], -1), numbers.gather(0, last)


def train(updates: int = 200, *, steps: int = 60, rows: int = 32, hidden: int = 16) -> tuple[list[float], bool]:
    """Train a minGRU and a linear readout to hold numbers.

    Returns:
        The mean squared error of every update, and whether rewinding a sequence with the learned weights was exact.
    """
    cell = min_gru()
    weights = {"ih": torch.randn(2 * hidden, 2).requires_grad_(), "bias": torch.zeros(2 * hidden, requires_grad=True)}
    readout = torch.nn.Linear(hidden, 1)
    optimizer = torch.optim.Adam([*weights.values(), *readout.parameters()], lr=0.05)
    losses = []
    for _ in range(updates):
        x, target = held_numbers(steps, rows)
        y, _ = rt.scan(cell, x, weights=weights)
        loss = (readout(y).squeeze(-1) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    recording = rt.record(cell, held_numbers(10 * steps, rows)[0], weights=weights)
    y, (first,) = rt.unscan(recording)
    return losses, torch.equal(y, recording.y) and not first.any()


if __name__ == "__main__":
    losses, exact = train()
    for update in range(0, len(losses), 20):
        print(f"update {update:3}  mean squared error {losses[update]:.4f}")
    print(f"update {len(losses) - 1:3}  mean squared error {losses[-1]:.4f}")
    print(f"rewound ten times the length it was trained on: {'every state bit for bit' if exact else 'NOT exact'}")
