"""Polyphonic music: which of 88 notes sound next, piece by piece.

Shapes: T steps, B pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from revtune.program.data.rolls import NOTES, Pieces, rolls
from revtune.program.signals.losses import PADDED, Loss, notes
from revtune.program.signals.net import At
from revtune.program.signals.rows import LikeLengths, beginning_together
from revtune.program.signals.task import Batch, SignalStudy, SignalTask, digest_of
from revtune.program.tasks.task import Split

AT_A_TIME = 16
"""Pieces that are evaluated together."""


@dataclass(frozen=True, kw_only=True)
class MusicStudy(SignalStudy):
    """Settings of a study on music."""

    pieces: Pieces = "jsb"
    """Bach's chorales, folk tunes of Nottingham, classical piano or MuseData: up to 160, 1,793, 3,857, 4,273 steps."""


class MusicTask(SignalTask):
    """The notes of the next step, given all before it."""

    at: ClassVar[At] = "step"
    measure: ClassVar[str] = "loss"
    study: MusicStudy

    def __init__(self, study: MusicStudy) -> None:
        super().__init__(study)
        self.rolls = rolls(study.pieces, study.data)
        self.refuse_large_batch({"training pieces": len(self.rolls.train)})
        lengths = [len(piece) for piece in self.rolls.train]
        self.rows = LikeLengths(lengths, study.learning.batch, study.seed)

    def digest(self) -> str:
        """SHA-256 of all pieces."""
        return digest_of(piece for part in self.rolls for piece in part)

    @property
    def sizes(self) -> tuple[int, int]:
        """Notes, and notes."""
        return NOTES, NOTES

    @property
    def loss(self) -> Loss:
        """Cross entropy of each note."""
        return notes

    def encode(self, x: Tensor) -> Tensor:
        """Notes as numbers."""
        return x.float()

    def counted(self, y: Tensor) -> int:
        """Steps that are no padding."""
        return int((y[..., 0] != PADDED).sum())

    def train_batch(self, step: int) -> Batch:
        """Notes (T, B, 88) of pieces of like lengths, and those of the next steps."""
        return self.batch([self.rolls.train[row] for row in self.rows.rows(step)])

    def batch(self, pieces: list[Tensor]) -> Batch:
        """Pieces side by side, all but their last steps, and all but their first."""
        x = beginning_together([piece[:-1] for piece in pieces])
        return x, beginning_together([piece[1:] for piece in pieces], PADDED)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Negative log-likelihood of a step in nats, summed over its notes, the mean over all steps of all pieces."""
        net: Any = model
        pieces = sorted(getattr(self.rolls, split), key=len)
        loss, steps = 0.0, 0
        for begin in range(0, len(pieces), AT_A_TIME):
            x, y = self.batch(pieces[begin : begin + AT_A_TIME])
            loss += notes(net.scores(x).flatten(0, 1), y.flatten(0, 1)).item()
            steps += self.counted(y)
        return {"loss": loss / steps}
