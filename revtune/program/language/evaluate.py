"""Loss on held-out text."""

from __future__ import annotations

import torch
from torch import Tensor

from revtune.processes import Processes
from revtune.program.data.text import segment, streams
from revtune.program.language.learning import Learning
from revtune.program.language.model import LanguageModel
from revtune.program.runs.checkpoint import RecurrentState


def evaluate(model: LanguageModel, rows: Tensor, length: int) -> float:
    """Mean loss in nats a token over streams (N, B), the state carried from one segment to the next."""
    total = 0.0
    state: RecurrentState = None
    model.eval()
    with torch.no_grad():
        for position in range(0, len(rows) - 1, length):
            inputs, targets, _ = segment(rows, position, length)
            loss, state = model.loss(inputs, targets, state)
            total += loss.item() * inputs.numel()
    return total / ((len(rows) - 1) * rows.shape[1])


def held_out(processes: Processes, model: LanguageModel, rows: Tensor, length: int) -> float:
    """As `evaluate`, where each process has some of the streams, perhaps none."""
    loss = evaluate(model, rows, length) if rows.shape[1] else 0.0
    if processes.count == 1:
        return loss
    total, columns = processes.total(loss * rows.shape[1], rows.shape[1])
    return total / columns


def held_out_streams(tokens: Tensor, learning: Learning, *, name: str, most: int | None = None) -> Tensor:
    """Held-out text (N,) cut into `most` streams, or into fewer so that none is shorter than a segment.

    Args:
        tokens: the text.
        learning: how long a segment is, and by its `valid_batch` how many streams are the most by default.
        name: of the text.
        most: streams.
    """
    return streams(tokens, max(1, min(most or learning.valid_batch, len(tokens) // learning.length)), name=name)
