"""How the sequences of a batch stand in a tensor, padded or packed, and which rows are of which example.

Shapes: T steps, R rows of one step, N rows of all steps, B examples, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


@dataclass(frozen=True)
class Steps:
    """The steps of a batch of sequences, each with a row of the first R of B examples.

    Attributes:
        sizes: R of each step, B in the first.
        examples: which example a row is of, shape (N,); None where all steps have B rows, and tensors are (T, B, F)
            instead of (N, F).
        order: where each example stands in the user's batch, shape (B,); None where the order is the same.
        reverse: whether the last step is run first.
    """

    sizes: list[int]
    examples: Tensor | None = None
    order: Tensor | None = None
    reverse: bool = False

    def times(self, *, back: bool = False) -> range:
        """Indices of steps as they are run, or backwards."""
        times = range(len(self.sizes))
        return times[::-1] if self.reverse != back else times

    def split(self, *rows: Tensor) -> list[tuple[Tensor, ...]]:
        """For each step, its part of each tensor (N, F)."""
        return list(zip(*(tensor.split(self.sizes) for tensor in rows), strict=True))

    def shaped(self, rows: Tensor) -> Tensor:
        """Rows (N, F), as (T, B, F) where all steps have B."""
        return rows.unflatten(0, (len(self.sizes), self.sizes[0])) if self.examples is None else rows

    def ordered(self, scalars: Tensor, dim: int = 0) -> Tensor:
        """A tensor with a dimension B, brought from the user's order into the order here."""
        return scalars if self.order is None else scalars.index_select(dim, self.order)

    def per_row(self, scalars: Tensor) -> Tensor:
        """Scalars of examples (B, F), as they broadcast over shaped rows."""
        return scalars if self.examples is None else scalars.index_select(0, self.examples)

    def summed_by_example(self, rows: Tensor) -> Tensor:
        """The sum over each example's rows, (N, F) to (B, F)."""
        if self.examples is None:
            return self.shaped(rows).sum(0)
        return rows.new_zeros(self.sizes[0], rows.shape[1]).index_add_(0, self.examples, rows)


def to_rows(input: Tensor | PackedSequence, batch_first: bool) -> tuple[Tensor, Steps]:
    """The rows of a padded or packed input, and how they stand."""
    if not isinstance(input, PackedSequence):
        x = input.transpose(0, 1).contiguous() if batch_first else input
        return x, Steps([x.shape[1]] * x.shape[0])
    sizes: list[int] = input.batch_sizes.tolist()
    examples = torch.cat([torch.arange(size) for size in sizes]).to(input.data.device)
    return input.data, Steps(sizes, examples, input.sorted_indices)


def from_rows(y: Tensor, like: Tensor | PackedSequence, batch_first: bool) -> Tensor | PackedSequence:
    """Rows, padded or packed as the input was."""
    if isinstance(like, PackedSequence):
        return PackedSequence(y, like.batch_sizes, like.sorted_indices, like.unsorted_indices)
    return y.transpose(0, 1) if batch_first else y
