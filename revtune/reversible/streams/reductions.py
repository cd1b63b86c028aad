"""What the loss of a stream is of its rows' losses: their mean, their sum, or each of them.

Shapes: B batch.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

KINDS = ("mean", "sum", "rows")


class Reduction(NamedTuple):
    """How the summed losses of positions, and penalties of rows, become a loss.

    Attributes:
        kind: one of `KINDS`.
        weight: what a mean over positions divides by; 1 for a sum.
        rows: B.
    """

    kind: str = "sum"
    weight: float = 1.0
    rows: int = 1

    @property
    def each(self) -> bool:
        """Whether each row's loss is wanted."""
        return self.kind == "rows"

    @property
    def share(self) -> float:
        """What a row's penalty counts in the gradient of the summed loss, which is divided by the weight later."""
        return 1.0 if self.kind == "sum" else self.weight / self.rows

    def of(self, summed: Tensor, penalties: Tensor | None) -> Tensor:
        """The loss.

        Args:
            summed: losses of all positions, 0-d; where each row's is wanted, of those of each, (B,).
            penalties: of each row, (B,), or None.
        """
        if self.each:
            losses = summed * (self.rows / self.weight)  # whose mean is the mean over positions
            return losses if penalties is None else losses + penalties
        loss = summed / self.weight
        if penalties is None:
            return loss
        return loss + (penalties.mean() if self.kind == "mean" else penalties.sum())


def check_reduction(reduction: str) -> None:
    """Refuse what is no reduction.

    Raises:
        ValueError: names the choices.
    """
    if reduction not in KINDS:
        raise ValueError(f'reduction must be "mean", "sum" or "rows", got {reduction!r}')
